//! An answer that is still to come.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use tokio::sync::oneshot::{self, error::TryRecvError};

use crate::{error::FabricError, spin};

/// A small read ends sooner than a thread wakes.
const AWAKE: Duration = Duration::from_micros(50);

/// The answer to one command.
///
/// # Cancel safety
/// Dropping it cancels nothing: the command was given, and the agent carries it out and keeps all memory it needs.
#[must_use = "the answer says whether the command was carried out"]
pub struct Pending<T>(State<T>);

enum State<T> {
    Waiting(oneshot::Receiver<Result<T, FabricError>>),
    Ready(Option<Result<T, FabricError>>),
    /// Put together of the answers of several commands.
    Composed(Pin<Box<dyn Future<Output = Result<T, FabricError>> + Send>>),
}

/// The end that answers. Dropping it unused answers [`FabricError::Lost`].
pub struct Answer<T>(Option<oneshot::Sender<Result<T, FabricError>>>);

impl<T> Answer<T> {
    /// Answers; a receiver that has gone is fine, nobody wants to know.
    pub fn send(self, answer: Result<T, FabricError>) {
        if let Some(sender) = self.0 {
            drop(sender.send(answer));
        }
    }

    /// Answers [`FabricError::Lost`].
    pub(crate) fn lose(&mut self) {
        self.0 = None;
    }
}

impl<T> fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

impl<T> Pending<T> {
    /// An answer to come, and the end that gives it: for implementations of [`crate::Fabric`] outside this crate too.
    pub fn pair() -> (Answer<T>, Self) {
        let (sender, receiver) = oneshot::channel();
        (Answer(Some(sender)), Self(State::Waiting(receiver)))
    }

    /// An answer that is there already: for implementations of [`crate::Fabric`] outside this crate too.
    pub fn ready(answer: Result<T, FabricError>) -> Self {
        Self(State::Ready(Some(answer)))
    }

    /// An answer made of others, whenever it is asked for: the commands behind them were given already.
    pub(crate) fn of(answer: impl Future<Output = Result<T, FabricError>> + Send + 'static) -> Self {
        Self(State::Composed(Box::pin(answer)))
    }

    /// Waits on this thread, awake for the first 50 µs; must not be called on a thread that runs async tasks.
    ///
    /// # Errors
    /// Whatever the command ended with.
    pub fn wait(self) -> Result<T, FabricError> {
        match self.0 {
            State::Waiting(mut receiver) => {
                let look = || match receiver.try_recv() {
                    Ok(answer) => Some(answer),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Closed) => Some(Err(FabricError::Lost)),
                };
                match spin::until(AWAKE, look) {
                    Some(answer) => answer,
                    None => receiver.blocking_recv().unwrap_or(Err(FabricError::Lost)),
                }
            }
            State::Ready(answer) => answer.unwrap_or(Err(FabricError::Lost)),
            State::Composed(answer) => block_on(answer),
        }
    }
}

/// Wakes the thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<T>(mut answer: Pin<Box<dyn Future<Output = T> + Send>>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match answer.as_mut().poll(&mut context) {
            Poll::Ready(answer) => return answer,
            Poll::Pending => thread::park(),
        }
    }
}

// Nothing here is ever pinned in place: an answer is moved out whole, and a future has its own box.
impl<T> Unpin for Pending<T> {}

impl<T> Future for Pending<T> {
    type Output = Result<T, FabricError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        match &mut this.0 {
            State::Waiting(receiver) => {
                let Poll::Ready(answer) = Pin::new(receiver).poll(context) else { return Poll::Pending };
                this.0 = State::Ready(None);
                Poll::Ready(answer.unwrap_or(Err(FabricError::Lost)))
            }
            State::Ready(answer) => Poll::Ready(answer.take().unwrap_or(Err(FabricError::Lost))),
            State::Composed(answer) => {
                let Poll::Ready(answer) = answer.as_mut().poll(context) else { return Poll::Pending };
                this.0 = State::Ready(None);
                Poll::Ready(answer)
            }
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

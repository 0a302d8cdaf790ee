//! Bodies that are needed in one piece.

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt as _;

/// Why a body is not here whole.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("the body is longer than {0} bytes")]
    TooLong(usize),
    #[error("the body breaks off")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Reads a body of at most `limit` bytes. One that comes in one frame, as most do, is not copied; of another the length that it announces,
/// if it does, is the memory that it gets.
///
/// # Cancel safety
/// What has been read is lost.
pub(crate) async fn read_whole<B>(mut body: B, limit: usize) -> Result<Bytes, Unread>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Unpin,
{
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Err(Unread::TooLong(limit));
    }
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| Unread::Broken(error.into()))?.into_data() else { continue };
        if first.len().max(all.len()).saturating_add(data.len()) > limit {
            return Err(Unread::TooLong(limit));
        }
        if first.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(announced.max(first.len().saturating_add(data.len())));
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use futures_util::stream;

    use super::*;

    fn body(frames: &[&'static str]) -> Body {
        let frames: Vec<_> =
            frames.iter().map(|frame| Ok::<_, std::io::Error>(Bytes::from_static(frame.as_bytes()))).collect();
        Body::from_stream(stream::iter(frames))
    }

    #[tokio::test]
    async fn a_body_comes_whole_whatever_its_frames_and_one_frame_is_not_copied() {
        for frames in [&[][..], &["ab"], &["", "ab"], &["a", "", "b"], &["a", "b", ""]] {
            let whole = read_whole(body(frames), 2).await.unwrap();
            assert_eq!(whole, frames.concat(), "{frames:?}");
        }
        let frame = Bytes::from_static(b"abc");
        assert_eq!(read_whole(Body::from(frame.clone()), 3).await.unwrap().as_ptr(), frame.as_ptr());
    }

    #[tokio::test]
    async fn one_byte_too_many_is_an_error_announced_or_not() {
        for frames in [&["abc"][..], &["ab", "c"], &["a", "b", "c"]] {
            assert!(matches!(read_whole(body(frames), 2).await, Err(Unread::TooLong(2))), "{frames:?}");
        }
        assert!(matches!(read_whole(Body::from("abc"), 2).await, Err(Unread::TooLong(2))));
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_none() {
        let frames = [Ok(Bytes::from_static(b"a")), Err(std::io::Error::other("gone"))];
        assert!(matches!(read_whole(Body::from_stream(stream::iter(frames)), 9).await, Err(Unread::Broken(_))));
    }
}

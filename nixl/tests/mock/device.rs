//! GPU memory through an agent: told to NIXL as what it is, and with the GPU's context current on the agent's thread.
//!
//! On the host's CUDA driver: the mock moves bytes by `memcpy`.

use cuda::Gpu;
use cuda_host::driver::HostDriver;
use nixl::{Closed, Fabric, FabricError, HugePages, MemKind, Memory, PeerMemory, Read, RemoteDescs};

use crate::library::{BLOCK, DEADLINE, Knob, Mock};

/// GPUs 0 and 1 of the host's driver, whose memory a mock may touch; none where a real driver is.
fn gpus() -> Option<[Gpu; 2]> {
    let host = HostDriver::unless_gpu()?;
    host.unguard(2).unwrap();
    Some([Gpu::open(0).unwrap(), Gpu::open(1).unwrap()])
}

#[test]
fn reads_between_memories_of_all_kinds_land() {
    let Some(gpus) = gpus() else { return };
    let mock = Mock::take();
    let host = || Memory::host(4 * BLOCK, HugePages::Off).unwrap();
    let pinned = || Memory::pinned(4 * BLOCK, HugePages::Try, &gpus[0]).unwrap();
    let device = |gpu: usize| Memory::device(4 * BLOCK, &gpus[gpu]).unwrap();
    for (there, here) in [
        (device(0), device(0)),
        (device(0), device(1)),
        (device(1), host()),
        (host(), device(1)),
        (device(1), pinned()),
        (pinned(), host()),
    ] {
        mock.set(Knob::Polls, 3);
        let pair = mock.pair_of(there, here);
        let expected = pair.here.memory().clone();
        assert_eq!(pair.reader.read(pair.read()).done.wait().unwrap().bytes, 2 * BLOCK, "{expected:?}");
        assert_eq!(pair.landed(), [0, 0, 7, 7]);
        assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Quiet));
        assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
        drop(pair);
        mock.is_clean();
    }
}

#[test]
fn what_a_peer_said_of_its_memory_is_what_nixl_is_asked_for() {
    let Some(gpus) = gpus() else { return };
    let mock = Mock::take();
    let pair = mock.pair_of(Memory::device(4 * BLOCK, &gpus[1]).unwrap(), Memory::device(4 * BLOCK, &gpus[0]).unwrap());
    let base = pair.there.base();
    // The right address on the wrong device, and as the wrong kind: NIXL does not know it.
    for (kind, device) in [(MemKind::Vram, 0), (MemKind::Dram, 0)] {
        let memory = PeerMemory { kind, device, ranges: std::iter::once(base..base + 4 * BLOCK).collect() };
        let remote = RemoteDescs::new(&memory, [(base, BLOCK), (base + BLOCK, BLOCK)]).unwrap();
        let refused = pair.reader.read(Read { remote, ..pair.read() }).done.wait().unwrap_err();
        assert!(matches!(refused, FabricError::Nixl(_)), "{refused}");
    }
    assert_eq!(pair.reader.read(pair.read()).done.wait().unwrap().bytes, 2 * BLOCK);
    assert_eq!(pair.reader.close(DEADLINE).wait(), Ok(Closed::Quiet));
    assert_eq!(pair.source.close(DEADLINE).wait(), Ok(Closed::Quiet));
    drop(pair);
    mock.is_clean();
}

#[test]
fn an_agent_s_own_gpu_is_current_before_nixl_is_touched() {
    let Some(gpus) = gpus() else { return };
    let mock = Mock::take();
    // Host memory of its own, a GPU's at the peer: nothing that it registers says which GPU.
    let before = mock.with_context();
    for (gpu, current) in [(None, 0), (Some(gpus[1].clone()), 1)] {
        let agent = mock.agent("d", |config| config.gpu = gpu);
        assert_eq!(mock.with_context() - before, current);
        assert_eq!(agent.close(DEADLINE).wait(), Ok(Closed::Quiet));
    }
    mock.is_clean();
}

//! What memory keeps, and that it is given back.

use std::ptr::NonNull;

use cuda::{CudaError, DeviceMemory, Gpu, Pinned};
use cuda_host::driver::Count;

use crate::{Rig, bytes};

const MIB: u64 = 1 << 20;

#[test]
fn memory_starts_zeroed_and_keeps_what_is_written() {
    let rig = Rig::take();
    let memory = DeviceMemory::new(&rig.gpu, 3 * MIB).unwrap();
    assert_eq!((memory.len(), memory.base() % 256), (3 * MIB, 0));
    let mut all = vec![1; 3 << 20];
    memory.read_at(0, &mut all).unwrap();
    assert!(all.iter().all(|byte| *byte == 0), "no other process's bytes");
    let text = bytes(100_000, 1);
    memory.write_at(12_345, &text).unwrap();
    memory.fill(12_345..12_347, 7).unwrap();
    memory.read_at(0, &mut all).unwrap();
    assert!(all[12_347..112_345] == text[2..] && all[12_345..12_347] == [7, 7]);
    assert!(all[..12_345].iter().chain(&all[112_345..]).all(|byte| *byte == 0));
    let other = DeviceMemory::new(&rig.gpu, MIB).unwrap();
    other.copy_from(5, &memory, 12_345, 100_000).unwrap();
    let mut copy = vec![0; 100_000];
    other.read_at(5, &mut copy).unwrap();
    assert!(copy[2..] == text[2..]);
}

#[test]
fn ranges_that_leave_the_memory_are_refused() {
    let rig = Rig::take();
    let memory = DeviceMemory::new(&rig.gpu, 4096).unwrap();
    let mut byte = [0];
    assert!(memory.read_at(4096, &mut byte).is_err() && memory.read_at(u64::MAX, &mut byte).is_err());
    assert!(memory.write_at(4095, &[1, 2]).is_err() && memory.fill(4095..4097, 1).is_err());
    assert!(memory.copy_from(0, &memory, 4000, 97).is_err() && memory.copy_from(4000, &memory, 0, 97).is_err());
    memory.read_at(4095, &mut byte).unwrap();
    assert_eq!(byte, [0]);
    // Nothing at the end is nothing.
    memory.write_at(4096, &[]).unwrap();
}

#[test]
fn more_than_the_gpu_has_is_refused_with_figures() {
    let rig = Rig::take();
    let total = rig.gpu.memory().unwrap().total;
    let error = DeviceMemory::new(&rig.gpu, total + 1).unwrap_err();
    assert!(matches!(error, CudaError::OutOfMemory { ordinal: 0, asked, .. } if asked == total + 1), "{error}");
    assert!(DeviceMemory::new(&rig.gpu, u64::MAX).is_err() && DeviceMemory::new(&rig.gpu, 0).is_err());
    let unknown = Gpu::open(4000).unwrap_err();
    assert!(matches!(unknown, CudaError::UnknownDevice { ordinal: 4000, .. }), "{unknown}");
}

#[test]
fn all_of_it_is_given_back() {
    let rig = Rig::take();
    let before = (rig.gpu.memory().unwrap(), rig.count(Count::Bytes));
    for _ in 0..50 {
        let memory = DeviceMemory::new(&rig.gpu, 64 * MIB).unwrap();
        let kept = memory.clone();
        drop(memory);
        kept.write_at(0, b"still there").unwrap();
    }
    assert_eq!(before, (rig.gpu.memory().unwrap(), rig.count(Count::Bytes)));
    let host = rig.host;
    drop(rig);
    let again = Rig::take();
    let twice = Gpu::open(0).unwrap();
    assert_eq!(twice.name(), again.gpu.name());
    if host.is_some() {
        assert_eq!([Count::Contexts, Count::Modules, Count::Streams].map(|count| again.count(count).unwrap()), [1; 3]);
    }
}

#[test]
fn host_memory_is_page_locked_for_as_long_as_it_is_held() {
    let rig = Rig::take();
    let before = rig.count(Count::Pinned);
    let mut memory = vec![0_u64; 1 << 16];
    let base = NonNull::new(memory.as_mut_ptr().cast::<u8>()).unwrap();
    // SAFETY: `memory` outlives both.
    #[expect(unsafe_code, reason = "pins a vector")]
    let pin = || unsafe { Pinned::new(&rig.gpu, base, 1 << 19) };
    let pinned = pin().unwrap();
    let error = pin().unwrap_err();
    assert!(error.to_string().contains("page-locked already"), "{error}");
    assert_eq!(rig.count(Count::Pinned), before.map(|before| before + 1));
    drop(pinned);
    assert_eq!(rig.count(Count::Pinned), before);
    drop(pin().unwrap());
}

#[test]
fn any_thread_may_use_it_at_once() {
    let rig = Rig::take();
    let memory = DeviceMemory::new(&rig.gpu, 8 * MIB).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let memory = memory.clone();
            scope.spawn(move || {
                let text = bytes(1 << 20, thread);
                memory.write_at(thread * MIB, &text).unwrap();
                let page = cuda::Page { offset: thread * MIB, block_len: MIB, stride: MIB, blocks: 1 };
                let mut digest = kv::digest::PageDigest::new();
                digest.update(&text);
                assert_eq!(memory.digests(&[page]).unwrap(), [digest.end()]);
                let mut back = vec![0; 1 << 20];
                memory.read_at(thread * MIB, &mut back).unwrap();
                assert!(back == text);
            });
        }
    });
}

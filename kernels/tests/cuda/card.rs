//! The host side on a driver that runs kernels on this processor.

use crate::machine::{Driver, SCHEDULES};
use ssm_kernels::cuda::activation::Gate;
use ssm_kernels::cuda::card::count;
use ssm_kernels::cuda::{Card, CardError, Launch, MODULES, Ptr};

const ROOM: usize = 1 << 24;

fn driver() -> Driver {
    Driver::new(SCHEDULES[2], ROOM)
}

/// `y = parts · x`, as a sum of the same rows.
fn gate(x: Ptr, y: Ptr, parts: u32, d: u32) -> (Gate, Launch) {
    let args = Gate { x, y, parts, rows: 1, d, x_stride: d, y_stride: d, ..Gate::default() };
    (args, args.launch().expect("few values"))
}

#[test]
fn values_go_there_and_back_in_order_and_nothing_is_left() {
    let driver = driver();
    {
        assert_eq!(count(), Ok(1));
        let card = Card::open(0).expect("the runner");
        assert!(card.name() == "runner" && card.processors() == 4);
        let (x, y) = (card.memory(100).expect("room"), card.memory(100).expect("room"));
        let (mut from, mut to) = (card.staging(100).expect("room"), card.staging(100).expect("room"));
        from.values().expect("nothing queued").iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
        card.write(&x, 10, &from, 0..90).expect("fits");
        // Written to before it was copied, it would go out changed.
        from.values().expect("copied").fill(-1.0);
        let (args, launch) = gate(x.ptr(), y.ptr(), 2, 100);
        card.launch(&launch, &args).expect("a kernel");
        card.read(&y, 0, &mut to, 0..100).expect("fits");
        let want: Vec<f32> = (0..100).map(|i| if i < 10 { 0.0 } else { 2.0 * (i as f32 - 10.0) }).collect();
        assert_eq!(to.values().expect("copied"), want);
        card.copy(&x, 0, &y, 0..50).expect("fits");
        card.read(&x, 0, &mut to, 0..50).expect("fits");
        assert_eq!(to.values().expect("copied")[..50], want[..50]);
        card.clear(&y).expect("zeros");
        card.read(&y, 0, &mut to, 0..100).expect("fits");
        assert!(to.values().expect("copied").iter().all(|v| *v == 0.0));
        assert_eq!((card.launches(), card.bytes(), driver.used()), (1, 800, 800));
    }
    assert_eq!(driver.objects(), 0, "a card leaves nothing behind");
}

#[test]
fn a_graph_does_what_was_recorded_with_what_lies_in_memory_then() {
    let driver = driver();
    {
        let card = Card::open(0).expect("the runner");
        let (x, y) = (card.memory(8).expect("room"), card.memory(8).expect("room"));
        let (mut from, mut to) = (card.staging(8).expect("room"), card.staging(8).expect("room"));
        let work = || {
            let (args, launch) = gate(x.ptr(), y.ptr(), 2, 8);
            card.launch(&launch, &args)?;
            let (args, launch) = gate(y.ptr(), y.ptr(), 1, 8);
            card.launch(&launch, &args)
        };
        work().expect("kernels");
        card.wait().expect("no mistake");
        let graph = card.record(work).expect("a graph");
        assert_eq!((card.launches(), driver.launches()), (2, driver.launches()), "what is recorded does not run");
        for value in [1.0, 3.0] {
            from.values().expect("copied").fill(value);
            card.write(&x, 0, &from, 0..8).expect("fits");
            graph.replay().expect("a graph");
            card.read(&y, 0, &mut to, 0..8).expect("fits");
            assert!(to.values().expect("copied").iter().all(|v| *v == 2.0 * value));
        }
        assert_eq!(card.launches(), 6);
        let failed = card.record(|| Err(CardError::NoDriver));
        assert_eq!(failed.err(), Some(CardError::NoDriver));
        work().expect("it does not record any more");
        card.wait().expect("no mistake");
    }
    assert_eq!(driver.objects(), 0);
}

#[test]
fn every_kernel_is_in_its_ptx() {
    let _driver = driver();
    let card = Card::open(0).expect("the runner");
    for module in MODULES {
        for kernel in module.kernels {
            assert!(module.ptx.contains(&format!(".entry {kernel}(")), "{kernel}");
        }
    }
    // A kernel of another module than its arguments'.
    let (args, launch) = gate(Ptr::NONE, Ptr::NONE, 1, 8);
    let error = card.launch(&Launch { kernel: "norm", ..launch }, &args).expect_err("other arguments");
    assert!(error.to_string().contains("norm"), "{error}");
}

#[test]
fn what_goes_wrong_is_an_error() {
    let driver = driver();
    assert_eq!(Card::open(3).err(), Some(CardError::NoCard { index: 3, count: 1 }));
    {
        let card = Card::open(0).expect("the runner");
        let memory = card.memory(ROOM / 8).expect("room for half");
        let error = card.memory(ROOM / 4).err();
        assert_eq!(error, Some(CardError::OutOfMemory { asked: ROOM, free: ROOM / 2 }));
        let mut staging = card.staging(8).expect("room");
        let beyond = CardError::Copy { at: ROOM / 8 - 4, len: 8, room: ROOM / 8 };
        assert_eq!(card.write(&memory, ROOM / 8 - 4, &staging, 0..8), Err(beyond.clone()));
        assert_eq!(card.read(&memory, ROOM / 8 - 4, &mut staging, 0..8), Err(beyond));
        assert!(card.read(&memory, 0, &mut staging, 4..12).is_err());
        let (args, launch) = gate(memory.ptr(), memory.ptr(), 1, 8);
        card.launch(&Launch { grid: [0, 1, 1], ..launch }, &args).expect("nothing to do");
        let error = card.launch(&Launch { block: 4096, ..launch }, &args).expect_err("too many threads");
        assert!(matches!(error, CardError::Launch { kernel: "gate", .. }), "{error}");
        card.wait().expect("nothing ran wrong");
        let (args, launch) = gate(Ptr(1 << 20), memory.ptr(), 1, 8);
        card.launch(&launch, &args).expect("nobody has looked yet");
        let error = card.wait().expect_err("no such address");
        assert!(error.to_string().contains("access outside a buffer"), "{error}");
        assert!(card.launch(&launch, &args).is_err(), "a card that went wrong stays wrong");
    }
    assert_eq!(driver.objects(), 0);
    Card::open(0).expect("another begins anew").wait().expect("nothing queued");
}

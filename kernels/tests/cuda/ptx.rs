//! The committed PTX: fresh, complete, and assembled for every architecture within a budget.

use ssm_kernels::cuda::MODULES;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

/// The packages are installed once.
static ENVIRONMENT: Mutex<()> = Mutex::new(());

/// What `ptx.py` prints, or nothing where NVIDIA's packages cannot be had; `SSM_REQUIRE=ptx` makes that a failure.
fn script(what: &str, folder: &Path) -> Option<String> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvidia");
    let one = ENVIRONMENT.lock().expect("no other use panicked");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/ptx.py");
    let output = Command::new("python3").arg(script).arg(environment).arg(what).arg(folder).output().expect("python3");
    drop(one);
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        let required = std::env::var("SSM_REQUIRE").unwrap_or_default().split(',').any(|w| w == "ptx");
        assert!(!required, "SSM_REQUIRE: no NVRTC and ptxas: {said}");
        // Not by eprintln: a test that passes shows nothing of that.
        let _ = writeln!(std::io::stderr(), "SKIP PTX: NVIDIA's packages cannot be had from PyPI: {}", said.trim());
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_committed_ptx_is_what_the_sources_give() {
    let fresh = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptx");
    let _ = std::fs::remove_dir_all(&fresh);
    if script("make", &fresh).is_none() {
        return;
    }
    let mut made: Vec<_> = std::fs::read_dir(&fresh).expect("made").map(|f| f.expect("a file").file_name()).collect();
    let mut named: Vec<std::ffi::OsString> = MODULES.iter().map(|m| format!("{}.ptx", m.name).into()).collect();
    made.sort();
    named.sort();
    assert_eq!(made, named, "sources and modules");
    for module in MODULES {
        let text = std::fs::read_to_string(fresh.join(module.name).with_extension("ptx")).expect("made");
        assert!(text == module.ptx, "kernels/ptx/{}.ptx is stale: run make ptx", module.name);
    }
}

#[test]
fn every_kernel_is_in_its_module() {
    for module in MODULES {
        let mut entries: Vec<&str> =
            module.ptx.split(".visible .entry ").skip(1).filter_map(|text| text.split('(').next()).collect();
        let mut kernels = module.kernels.to_vec();
        entries.sort_unstable();
        kernels.sort_unstable();
        assert_eq!(entries, kernels, "{}", module.name);
        assert!(module.ptx.contains("\n.version 8.0\n") && module.ptx.contains("\n.target sm_80\n"), "{}", module.name);
    }
}

/// Registers of a thread and spilled bytes on sm_80, 86, 89, 90, 100 and 120: at most what `budget.txt` says.
#[test]
fn kernels_stay_within_their_budget() {
    let Some(used) = script("assemble", &Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx")) else {
        return;
    };
    fn table(text: &str) -> BTreeMap<(&str, &str), (u32, u32)> {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let [module, kernel, registers, spilled] = line.split(' ').collect::<Vec<_>>()[..] else {
                    panic!("a line of four words, got '{line}'");
                };
                let number = |word: &str| word.parse::<u32>().expect("a number");
                ((module, kernel), (number(registers), number(spilled)))
            })
            .collect()
    }
    let (budget, used) = (table(include_str!("budget.txt")), table(&used));
    assert!(budget.keys().eq(used.keys()), "budget.txt and the kernels: {:?} and {:?}", budget.keys(), used.keys());
    for (kernel, (registers, spilled)) in used {
        let (most_registers, most_spilled) = budget[&kernel];
        assert!(
            registers <= most_registers && spilled <= most_spilled,
            "{kernel:?}: {registers} registers, {spilled} bytes spilled; at most {most_registers} and {most_spilled}"
        );
    }
}

//! Links the release build of `tenon` statically, so that the program starts without a dynamic loader and runs on any
//! node whatever its C library.
//!
//! `-C target-feature=+crt-static` would do the same, but for a host build it also reaches procedural macros, which must
//! be dynamic, and so it asks for an explicit `--target` and another output directory. The arguments here reach this one
//! program. The compiler names the shared C and unwinder libraries (`-Bdynamic -lgcc_s -lc`) after everything else;
//! linker scripts of these names, found first, send the linker to the archives instead.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

const LIBC: &str = "INPUT(-l:libc.a)\n";

/// What the compiler may link by its shared name, and where the archives are. They need one another, hence the group.
const SCRIPTS: [(&str, &str); 7] = [
    ("libgcc_s.so", "GROUP(-l:libgcc_eh.a -l:libgcc.a -l:libc.a)\n"),
    ("libc.so", "GROUP(-l:libc.a -l:libgcc_eh.a -l:libgcc.a)\n"),
    // Since glibc 2.34 these are part of libc; the archives of these names are empty.
    ("libpthread.so", LIBC),
    ("libdl.so", LIBC),
    ("librt.so", LIBC),
    ("libutil.so", LIBC),
    ("libm.so", "INPUT(-l:libm.a)\n"),
];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if !wants_static() {
        return Ok(());
    }
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    if !finds(&linker, "libc.a") || !finds(&linker, "libgcc_eh.a") {
        println!("cargo::warning=no static C library found, so `tenon` is linked dynamically");
        return Ok(());
    }
    let directory = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("static-libraries");
    write_scripts(&directory)?;
    // Symbols are removed here: Cargo does not apply the profile's `strip` to a package with settings of its own.
    for argument in ["-no-pie", "-static", "-Wl,--strip-all", &format!("-L{}", directory.display())] {
        println!("cargo::rustc-link-arg-bin=tenon={argument}");
    }
    Ok(())
}

/// A release build for Linux with glibc that is not static anyway.
fn wants_static() -> bool {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    is("PROFILE", "release")
        && is("CARGO_CFG_TARGET_OS", "linux")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && !features.split(',').any(|feature| feature == "crt-static")
}

/// Whether the linker's driver knows where an archive is: it then answers with a path, otherwise with the bare name.
fn finds(linker: &std::ffi::OsStr, archive: &str) -> bool {
    let answer = Command::new(linker).arg(format!("-print-file-name={archive}")).output();
    answer.is_ok_and(|answer| String::from_utf8_lossy(&answer.stdout).trim().contains('/'))
}

fn write_scripts(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    SCRIPTS.iter().try_for_each(|(name, script)| fs::write(directory.join(name), script))
}

//! What Tenon's programs weigh.

use std::{fs, path::Path};

use tenon_tests::{BedError, Cluster, Outcome, command::Tool, ground::binary};

use crate::figures::{Goal, Samples, judge, topic};

const STARTS: usize = 300;
const MEGABYTE: f64 = 1e6;

/// Starts of the plugin that need no agent, and for comparison of a program that does nothing, in turns.
pub(crate) fn start_time() -> Outcome {
    let plugin = binary("tenon")?;
    let (mut version, mut nothing) = (Samples::default(), Samples::default());
    for _ in 0..STARTS {
        let tenon =
            Tool::new(&plugin).clear_env().env("CNI_COMMAND", "VERSION").input(r#"{"cniVersion":"1.1.0"}"#);
        version.extend([tenon.timed()?]);
        nothing.extend([Tool::new("/bin/true").clear_env().timed()?]);
    }
    topic(&format!("Start of a process from exec to exit, {STARTS} of each, in milliseconds"));
    println!("  {:<26} {:>8} {:>8}", "", "p50", "p99");
    for (what, samples) in [("tenon VERSION", &version), ("/bin/true", &nothing)] {
        println!("  {what:<26} {:>8.2} {:>8.2}", samples.p50(), samples.p99());
    }
    judge("tenon VERSION, p50", version.p50(), "ms", Goal::Below(2.0));
    Ok(())
}

/// The plugin's size and the agents' memory, with what is in the cluster now.
pub(crate) fn weight(cluster: &Cluster, tenants: usize) -> Outcome {
    topic("Size and memory");
    let plugin = binary("tenon")?;
    let size = fs::metadata(&plugin).map_err(|e| BedError::system("look at tenon", e))?.len();
    judge("size of tenon", size as f64 / MEGABYTE, "MB", Goal::Below(1.5));
    let dynamic = if needs_loader(&plugin)? { 1.0 } else { 0.0 };
    judge("shared libraries' loader that tenon needs", dynamic, "", Goal::AtMost(0.0));
    for node in &cluster.nodes {
        let pods = node.ports()?.len().saturating_sub(2);
        let memory = node.agent_pid().map_or(Ok(f64::NAN), resident)?;
        let what = format!("RSS of {}'s agent, {pods} pods, {tenants} tenants", node.name());
        judge(&what, memory / MEGABYTE, "MB", Goal::Below(25.0));
    }
    Ok(())
}

/// `ldd` finds out by the program's headers.
fn needs_loader(program: &Path) -> Result<bool, BedError> {
    let output = Tool::new("ldd").args([program.display().to_string()]).output()?;
    Ok(output.stdout.contains("ld-linux"))
}

/// Bytes of a process's memory that are in RAM.
fn resident(pid: u32) -> Result<f64, BedError> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).map_err(|e| BedError::system(format!("read {file}"), e))?;
    let kibibytes =
        text.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kibibytes: f64 = kibibytes.ok_or_else(|| BedError::answer(format!("VmRSS in {file}"), text))?;
    Ok(kibibytes * 1024.0)
}

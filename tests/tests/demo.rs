//! `make demo` shows what it says, cleans up, and can be kept and removed.

use tenon_tests::{Outcome, command::Tool};

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

fn clusters_of(pid: u32) -> usize {
    let listing = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    listing.filter(|n| n.file_name().to_string_lossy().starts_with(&format!("tenon-{pid}-"))).count()
}

#[test]
fn demo_shows_every_action_and_cleans_up() -> Outcome {
    let child = Tool::new(DEMO).start()?;
    let pid = child.id();
    let output = child.wait_with_output().expect("the demo's output");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for action in ["join", "isolate", "global"] {
        assert!(text.contains(&format!("\"Action\":\"{action}\"")), "{text}");
    }
    assert_eq!(
        text.matches("$ ETCDCTL_API=3 etcdctl").count(),
        3 + 2,
        "three actions and two segments:\n{text}"
    );
    assert!(text.contains("has 10.100.0.50 and 52:54:00:12:34:56"), "{text}");
    assert_eq!(text.matches("): yes").count(), 2, "host access on two segments:\n{text}");
    assert_eq!(text.matches("shop-1 ").count(), 2 * 4 + 1, "four tables and one ADD:\n{text}");
    assert_eq!(clusters_of(pid), 0);
    Ok(())
}

#[test]
fn kept_demo_can_be_entered_and_removed() -> Outcome {
    let child = Tool::new(DEMO).args(["--keep"]).start()?;
    let pid = child.id();
    let output = child.wait_with_output().expect("the demo's output");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(clusters_of(pid) > 5);
    let enter = text.lines().find(|line| line.contains("ping")).expect("a way in").trim();
    let entered = Tool::new("sh").args(["-c", &format!("{enter} -c 1 -W 5")]).run();
    Tool::new(DEMO).args(["--sweep"]).run()?;
    let survivors = clusters_of(pid);
    Tool::new(DEMO).args(["--remove"]).run()?;
    assert_eq!(clusters_of(pid), 0);
    assert!(survivors > 5, "a sweep takes nothing that was kept");
    entered.map(|_| ())
}

#[test]
fn unknown_argument_is_wrong_usage() -> Outcome {
    let output = Tool::new(DEMO).args(["--explode"]).output()?;
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.contains("--explode"));
    Ok(())
}

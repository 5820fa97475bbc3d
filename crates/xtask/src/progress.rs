//! Progress bars for what takes minutes the first time: building tools and starting the cluster.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use gqla_testkit::progress::{Event, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Spinners on a terminal, plain lines elsewhere.
pub fn bars() -> Progress {
    let bars = MultiProgress::new();
    let running: Mutex<HashMap<String, ProgressBar>> = Mutex::new(HashMap::new());
    Progress::new(move |event| {
        let Ok(mut running) = running.lock() else { return };
        match event {
            Event::Started { step } => {
                if console_is_plain() {
                    eprintln!("    {step} …");
                }
                let bar = bars.add(ProgressBar::new_spinner().with_message(step.to_owned()));
                if let Ok(style) = ProgressStyle::with_template("    {spinner} {msg} {elapsed}") {
                    bar.set_style(style);
                }
                bar.enable_steady_tick(Duration::from_millis(120));
                running.insert(step.to_owned(), bar);
            }
            Event::Detail { step, line } => {
                if let Some(bar) = running.get(step) {
                    let shown: String = line.chars().take(60).collect();
                    bar.set_message(format!("{step}: {shown}"));
                }
            }
            Event::Finished { step, elapsed } => {
                if let Some(bar) = running.remove(step) {
                    bar.finish_and_clear();
                }
                let line = format!("    {step}: {:.1} s", elapsed.as_secs_f64());
                if bars.println(&line).is_err() || console_is_plain() {
                    eprintln!("{line}");
                }
            }
        }
    })
}

fn console_is_plain() -> bool {
    !std::io::IsTerminal::is_terminal(&std::io::stderr())
}

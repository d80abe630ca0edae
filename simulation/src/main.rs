//! Lives through one seed after the other until it is done or something is wrong.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use dogsled_simulation::faults::Kind;
use dogsled_simulation::planted::Planted;
use dogsled_simulation::{Options, Report, run};

/// Simulates whole clusters, each from a seed, and judges them.
#[derive(Parser)]
struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Simulated seconds of faults in each
    #[arg(long, default_value_t = 12)]
    seconds: u64,
    /// Only these kinds of faults, by comma
    #[arg(long, value_delimiter = ',')]
    faults: Vec<Kind>,
    /// Clients run transactions over partitions
    #[arg(long)]
    transactions: bool,
    /// A quorum is lost for ever and recovered, instead of everything else
    #[arg(long)]
    lost: bool,
    /// Build in a bug, to see it caught
    #[arg(long, value_name = "NAME")]
    plant: Option<Planted>,
    /// Print every event
    #[arg(long)]
    trace: bool,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
    /// Print a line for each seed
    #[arg(long, short)]
    verbose: bool,
    /// Live through each twice and compare
    #[arg(long)]
    twice: bool,
}

fn print_failure(report: &Report, arguments: &Arguments) {
    println!("\nseed {} FAILED", report.seed);
    for violation in &report.violations {
        println!("- {violation}");
    }
    println!("  faults: {}", report.faults);
    let seconds = match arguments.seconds {
        12 => String::new(),
        other => format!(" --seconds {other}"),
    };
    let names: Vec<String> = arguments.faults.iter().map(|kind| format!("{kind:?}")).collect();
    let mut only = if names.is_empty() { String::new() } else { format!(" --faults {}", names.join(",")) };
    if arguments.transactions {
        only.push_str(" --transactions");
    }
    if arguments.lost {
        only.push_str(" --lost");
    }
    if let Some(planted) = arguments.plant {
        only.push_str(&format!(" --plant {planted:?}"));
    }
    println!(
        "  again: cargo run --release -p dogsled-simulation -- --from {} --seeds 1{seconds}{only} --trace",
        report.seed
    );
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let began = Instant::now();
    let (mut failed, mut undecided) = (Vec::new(), 0);
    let mut totals = (0, 0, 0, 0);
    for seed in arguments.from..arguments.from + arguments.seeds {
        let options = Options {
            seed,
            trace: arguments.trace,
            duration: Duration::from_secs(arguments.seconds),
            only: arguments.faults.clone(),
            transactions: arguments.transactions,
            lost: arguments.lost,
            planted: arguments.plant,
        };
        let mut report = run(&options);
        if arguments.twice {
            let again = run(&options);
            if again.trace != report.trace {
                let what = format!("lived twice, it differs: {:?} and {:?}", report.trace, again.trace);
                report.violations.push(what);
            }
        }
        undecided += report.undecided;
        totals.0 += report.operations.0;
        totals.1 += report.operations.1;
        totals.2 += report.operations.2;
        totals.3 += report.trace.1;
        if arguments.verbose {
            println!(
                "seed {seed}: trace {:016x}, {} events, operations {:?}, {}, {:?}",
                report.trace.0, report.trace.1, report.operations, report.faults, report.counts
            );
        }
        if !report.violations.is_empty() {
            print_failure(&report, &arguments);
            failed.push(seed);
            if !arguments.keep_going {
                break;
            }
        }
    }
    println!(
        "{} seeds in {:.1} s: {} operations heard, {} refused, {} unknown; {} events; {undecided} histories undecided; failed: {failed:?}",
        arguments.seeds,
        began.elapsed().as_secs_f64(),
        totals.0,
        totals.1,
        totals.2,
        totals.3
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

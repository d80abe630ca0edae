//! The `dogsled` binary: a node of a cluster, and a cluster or a database directory from the shell.
//!
//! [`args`] is the command line, [`commands`] does what it says with the library's public API, and
//! [`output`] and [`progress`] tell of it. [`serve`] runs a node. [`database`] is what the data
//! commands work on, be it a directory ([`store`]) or a cluster ([`remote`]). Below them stand parts
//! that know neither database nor terminal: [`bytes`] (keys and values as text), [`load`] (the
//! formats of other programs) and [`archive`] (the stream of `export`).
//!
//! What scripts may rely on: results on standard output and all else on standard error; the exit
//! codes of [`exit::Code`]; with `--json` one document per line. A command that writes returns
//! only after a sync. A command that reads never makes a database.

mod archive;
mod args;
mod bytes;
mod commands;
mod database;
mod demo;
mod exit;
mod load;
mod moment;
mod operations;
mod output;
mod output_file;
mod progress;
mod remote;
mod serve;
mod sink;
mod store;

use std::process::ExitCode;

use self::args::{Cli, Command, Global, LockRun};
use self::bytes::ByteFormat;
use self::exit::{Failure, Result};
use self::output::Output;

/// Runs the binary.
pub(crate) fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(failure) => return failure.report(std::env::args_os().any(|argument| argument == "--json")),
    };
    let json = cli.global.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

fn run(cli: Cli) -> Result<()> {
    let Cli { global, command } = cli;
    let lists = !matches!(command, Command::Put { .. } | Command::Cas { .. } | Command::Load(_));
    if lists && global.value_format == Some(ByteFormat::File) {
        return Err(Failure::usage(
            "--value-format file is for `put` and `cas`; `get --output FILE` writes to a file",
        ));
    }
    refuse_ignored(&global, &command)?;
    let mut output = Output::new(global.json, global.key_form(), global.value_form());
    let out = &mut output;
    match command {
        Command::Get { key, output, from } => {
            commands::entries::get(&global, out, &key, output.as_deref(), &from)
        }
        Command::Put { key, value, session: Some(session), next, .. } => {
            commands::session::put(&global, out, (&key, &value), &session, next)
        }
        Command::Put { key, value, next: true, .. } => {
            commands::entries::put_next(&global, out, &key, &value)
        }
        Command::Put { key, value, ttl, fence, .. } => {
            commands::entries::put(&global, out, &key, &value, ttl, &fence)
        }
        Command::Cas { key, old, new, fence } => {
            commands::entries::cas(&global, out, &key, (old.as_deref(), new.as_deref()), &fence)
        }
        Command::Ttl { key } => commands::ttl::ttl(&global, out, &key),
        Command::Expire { key, seconds } => commands::ttl::expire(&global, out, &key, seconds),
        Command::Persist { key } => commands::ttl::persist(&global, out, &key),
        Command::Del { keys, fence } => commands::entries::del(&global, out, &keys, &fence),
        Command::Scan { range, reverse, limit, keys_only, from } => {
            commands::entries::scan(&global, out, &range, (reverse, keys_only), limit, &from)
        }
        Command::Watch { prefix, after, limit } => {
            commands::watch::watch(&global, out, prefix.as_deref(), after.as_deref(), limit)
        }
        Command::Count { range, from } => commands::entries::count(&global, out, &range, &from),
        Command::Trees => commands::entries::trees(&global, out),
        Command::Load(args) => commands::load::load(&global, out, &args),
        Command::Export { file, format } => commands::transfer::export(&global, out, file.as_deref(), format),
        Command::Import { file, format, merge } => {
            commands::transfer::import(&global, out, &file, format, merge)
        }
        Command::Backup { directories, since } => match global.wants_cluster()? {
            true => commands::backup::backup(&global, out, &directories, &since),
            false => commands::upkeep::backup(&global, out, &directories, &since),
        },
        Command::Restore { directories, merge, no_check } => {
            commands::backup::restore(&global, out, &directories, merge, no_check)
        }
        Command::Verify { directory } => commands::upkeep::verify(&global, out, directory.as_ref()),
        Command::Repair { directories, behind_gaps } => {
            commands::upkeep::repair(&global, out, &directories, behind_gaps)
        }
        Command::Stats { directory } => commands::upkeep::stats(&global, out, directory.as_ref()),
        Command::Bench(args) => commands::bench::bench(&global, out, &args),
        Command::Wal { command } => commands::wal::wal(&global, out, &command),
        Command::Counter { command } => commands::coordination::counter(&global, out, &command),
        Command::Lock { command: Some(_), run: LockRun { name: Some(_), .. } } => {
            return Err(Failure::usage("a lock to run a command under, or a subcommand, not both"));
        }
        Command::Lock { command: Some(command), .. } => commands::coordination::lock(&global, out, &command),
        Command::Lock { command: None, run } => commands::lock_run::lock(&global, &run),
        Command::ReadLock(run) => commands::lock_run::read_lock(&global, &run),
        Command::WriteLock(run) => commands::lock_run::write_lock(&global, &run),
        Command::Semaphore(args) => commands::lock_run::semaphore(&global, &args),
        Command::Election { command } => commands::election::election(&global, out, &command),
        Command::Session { command } => commands::session::session(&global, out, &command),
        Command::Registry { command } => commands::registry::registry(&global, out, &command),
        Command::Txn { file, fence } => commands::txn::txn(&global, out, &file, &fence),
        Command::Serve(args) => serve::serve(&global, out, &args),
        Command::Certs { command } => commands::certs::certs(&global, out, &command),
        Command::Status => commands::status::status(&global, out),
        Command::Member { command } => commands::member::member(&global, out, &command),
        Command::Drain { id, cancel, no_wait } => {
            commands::rebalance::drain(&global, out, id, cancel, no_wait)
        }
        Command::Rebalance(args) => commands::rebalance::rebalance(&global, out, &args),
        Command::Replicas { count, no_wait } => commands::rebalance::replicas(&global, out, count, no_wait),
        Command::Tree { command } => commands::tree::tree(&global, out, &command),
        Command::Recover { lost, accept_data_loss } => {
            commands::recover::recover(&global, out, &lost, accept_data_loss)
        }
        Command::Demo(args) => demo::demo(out, &args),
    }?;
    output.finish()
}

/// Refuses options that a command would not look at, though whoever gives them counts on them: a restore of one tree
/// would write all of them.
fn refuse_ignored(global: &Global, command: &Command) -> Result<()> {
    let chooses_no_tree = matches!(
        command,
        Command::Backup { .. }
            | Command::Restore { .. }
            | Command::Verify { .. }
            | Command::Repair { .. }
            | Command::Stats { .. }
            | Command::Wal { .. }
            | Command::Counter { .. }
            | Command::Lock { .. }
            | Command::ReadLock(_)
            | Command::WriteLock(_)
            | Command::Semaphore(_)
            | Command::Election { .. }
            | Command::Registry { .. }
            | Command::Trees
            | Command::Tree { .. }
            | Command::Serve(_)
            | Command::Certs { .. }
            | Command::Status
            | Command::Member { .. }
            | Command::Drain { .. }
            | Command::Rebalance(_)
            | Command::Replicas { .. }
            | Command::Recover { .. }
            | Command::Demo(_)
    );
    if chooses_no_tree && global.tree.is_some() {
        return Err(Failure::usage(
            "--tree is for commands on keys of one tree; this one is not, and nothing was done",
        ));
    }
    if matches!(command, Command::Serve(_)) && (global.is_dir_given() || global.is_connect_given()) {
        return Err(Failure::usage(
            "a node's data is in the directory given with --data, and --listen is its address",
        ));
    }
    Ok(())
}

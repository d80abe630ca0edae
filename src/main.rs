//! The `dogsled` binary; see [`cli`].

mod cli;

/// The binary's alone: whoever links the library chooses.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}

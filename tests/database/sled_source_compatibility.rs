//! A program written for sled 0.34 compiles, and does the same, after `use dogsled as sled;`.
//!
//! The programs are in one file that is compiled twice, with either meaning of `sled`: what sled
//! itself does not compile or pass is no evidence.

#![allow(clippy::all, rust_2018_idioms, reason = "they are written as sled's users write")]

/// Waits for a future, as the simplest of executors does.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => std::thread::park(),
        }
    }
}

mod with_sled {
    use super::block_on;
    use ::sled;

    include!("../sled_idioms/programs.rs");
}

mod with_dogsled {
    use super::block_on;
    use ::dogsled as sled;

    include!("../sled_idioms/programs.rs");
}

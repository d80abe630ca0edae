//! The write-ahead log: what it promises, and what it keeps when the machine dies.

mod basics;
mod crash;

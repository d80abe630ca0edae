//! The embedded database, as applications use it.

mod agreement;
mod coordination;
mod handles;
mod kill_nine;
mod moves_data_from_sled_and_back;
mod regressions;
mod regressions_more;
mod sled_source_compatibility;
mod transaction_histories;
mod transactions;
mod typed_keys;
mod watching;

pub mod ivec;

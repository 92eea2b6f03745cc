//! Shared helpers of the test files.

//! Bounded resources and shares of them, permits whose number may change, and pauses. A leaf.

pub mod budget;
pub mod pause;
pub mod permits;

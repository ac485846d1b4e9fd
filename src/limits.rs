//! Bounded resources and shares of them, permits whose number can change, and pauses. A leaf: any module may import it.

pub mod budget;
pub mod pause;
pub mod permits;

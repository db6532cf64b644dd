//! How a reader and an owner greet each other, whatever connects them: version, mutual proof of the
//! cluster's secret, then namespace and block size.
//!
//! The proof is the Noise handshake `NNpsk0` of the `snow` crate. Messages have fixed sizes and are
//! bytes in, bytes out: `docs/protocol.md` shows them. This crate knows nothing of sockets, time, or
//! of what goes over a connection afterwards.

mod credential;
mod greeting;
mod message;
mod refusals;

pub use credential::Credential;
pub use greeting::{
    Answering, Asking, CONFIRM_BYTES, Failed, GreetError, PROOF_BYTES, Proven, Proving, Terms,
    VERDICT_BYTES,
};
pub use message::{
    HELLO_BYTES, Hello, MAX_MESSAGE_BYTES, MessageError, Refusal, WELCOME_BYTES, Welcome,
};
pub use refusals::Refusals;

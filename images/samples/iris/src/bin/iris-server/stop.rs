//! The end on SIGTERM. The first process of a pid namespace gets no signal that it has not asked for, so a server
//! that is to stop when told needs a handler. This module alone holds unsafe code: the standard library has no
//! signals, and the sample depends on nothing else.
#![allow(unsafe_code)]

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn _exit(status: i32) -> !;
}

extern "C" fn leave(_: i32) {
    // SAFETY: _exit is async-signal-safe and takes any status.
    unsafe { _exit(0) }
}

/// From now on SIGTERM and SIGINT end the process with status 0.
pub(crate) fn on_signals() {
    for number in [SIGTERM, SIGINT] {
        // SAFETY: both numbers are valid and catchable; `leave` has the handler's type and is async-signal-safe.
        unsafe {
            signal(number, leave);
        }
    }
}

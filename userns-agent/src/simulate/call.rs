//! System calls of the techniques, and what their errors mean.

use libc::{c_long, c_uint};
use rustix::io::Errno;

use super::technique::{Attempt, Outcome, errno_name};

/// A system call of which no library has a safe form.
///
/// # Safety
///
/// Arguments that the kernel takes for pointers must be valid for as long as the call takes, and the call must not
/// change memory or descriptors that others rely on.
pub(super) unsafe fn raw(number: c_long, arguments: [c_long; 6]) -> Result<c_long, Errno> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: as the caller promises.
    let ret = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if ret == -1 { Err(last_error()) } else { Ok(ret) }
}

/// The error of the call before.
fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// `errno` of a failed call of the standard library.
pub(super) fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EIO))
}

/// What the error of `call` means: the kernel lacks it, there is nothing to reach, or it was denied.
pub(super) fn refused(call: &'static str) -> impl Fn(Errno) -> Outcome {
    move |errno| match errno {
        Errno::NOSYS | Errno::OPNOTSUPP | Errno::NODEV | Errno::INVAL | Errno::NOTTY => {
            Outcome::Unsupported(format!("{call}: {}", errno_name(errno.raw_os_error())))
        }
        Errno::NOENT | Errno::NXIO | Errno::SRCH | Errno::STALE | Errno::NOMEDIUM => {
            Outcome::OutOfReach(format!("{call}: {}", errno_name(errno.raw_os_error())))
        }
        denied => Outcome::Denied { errno: denied.raw_os_error(), call: call.to_owned() },
    }
}

/// Judges a call in a form that cannot succeed: one of these errors says that it would have been allowed.
pub(super) fn allowed_if<T>(result: Result<T, Errno>, call: &'static str, errors: &[Errno]) -> Attempt {
    match result {
        Ok(_) => Ok(()),
        Err(errno) if errors.contains(&errno) => Ok(()),
        Err(errno) => Err(refused(call)(errno)),
    }
}

/// A number as an argument of [`raw`].
pub(super) fn argument(number: c_uint) -> c_long {
    // the kernel takes as many bits as it wants
    number as c_long
}

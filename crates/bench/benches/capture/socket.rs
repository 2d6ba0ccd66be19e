//! A socket that sees each packet of the loopback device, with the kernel's time stamps (packet(7), socket(7)).

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::packet::Direction;

/// The longest packet of loopback.
const LONGEST: usize = 64 << 10;
/// Room for what is not read at once, in bytes.
const BUFFER: c_int = 64 << 20;
/// How long a read waits for a packet.
const PATIENCE: Duration = Duration::from_millis(50);

/// One packet as the device has seen it, without the header of its link.
pub(crate) struct Packet {
    pub(crate) direction: Direction,
    /// By the machine's clock, since 1970.
    pub(crate) at: Duration,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) struct Capture(OwnedFd);

impl Capture {
    /// # Errors
    /// The system's, above all where the process may not capture.
    pub(crate) fn of_loopback() -> io::Result<Self> {
        // Sockets of one protocol are not shown what is sent.
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no pointer is passed; the result is checked before it is used.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol.into()) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been made and belongs to nobody else.
        let capture = Self(unsafe { OwnedFd::from_raw_fd(socket) });
        capture.bind(protocol)?;
        capture.set(libc::SO_TIMESTAMPNS, &1)?;
        capture.set(libc::SO_RCVBUFFORCE, &BUFFER)?;
        let patience = libc::timeval { tv_sec: 0, tv_usec: PATIENCE.as_micros() as libc::suseconds_t };
        capture.set(libc::SO_RCVTIMEO, &patience)?;
        Ok(capture)
    }

    fn bind(&self, protocol: u16) -> io::Result<()> {
        // SAFETY: a string that ends in 0.
        let device = unsafe { libc::if_nametoindex(c"lo".as_ptr()) };
        // SAFETY: all zeros is an address of this kind.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = device as c_int;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is one, of the length given.
        done(unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), length) } as isize).map(drop)
    }

    fn set<T>(&self, option: c_int, value: &T) -> io::Result<()> {
        let length = size_of::<T>() as libc::socklen_t;
        let pointer: *const c_void = (&raw const *value).cast();
        // SAFETY: the value lives as long as the call and has the length given.
        let result = unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, pointer, length) };
        done(result as isize).map(drop)
    }

    /// The next packet. None: there was none for a while.
    pub(crate) fn next(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; LONGEST];
        let mut control = [0_u64; 16];
        // SAFETY: all zeros is a value of both.
        let (mut address, mut message): (libc::sockaddr_ll, libc::msghdr) = unsafe { zeroed() };
        let mut place = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut place;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: every pointer in the message is to a place that lives here and has the length that stands beside it.
        let received = match done(unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) }) {
            Ok(received) => received,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        bytes.truncate(received);
        let sent = u32::from(address.sll_pkttype) == u32::from(libc::PACKET_OUTGOING);
        let direction = if sent { Direction::Sent } else { Direction::Received };
        let at = time_stamp(&message).ok_or_else(|| io::Error::other("a packet without a time stamp"))?;
        Ok(Some(Packet { direction, at, bytes }))
    }
}

/// What the kernel has written beside the packet.
fn time_stamp(message: &libc::msghdr) -> Option<Duration> {
    // SAFETY: the kernel has filled in the message, and the macro stays within the control data's length.
    let header = unsafe { libc::CMSG_FIRSTHDR(message).as_ref() }?;
    if (header.cmsg_level, header.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
        return None;
    }
    // SAFETY: data of this kind is a timespec, which may stand anywhere.
    let stamp = unsafe { libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned() };
    Some(Duration::new(stamp.tv_sec as u64, stamp.tv_nsec as u32))
}

fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

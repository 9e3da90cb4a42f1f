//! The entry as one allocation, and the only unsafe code of this room.
//!
//! Hot path: every read and write touches an [`Entry`]. A table slot holds one thin pointer, and
//! what it points to holds everything about the key, because the naive two buffers and a struct
//! cost 215 bytes for 80 bytes of payload where this costs 114 (`docs/design/`). Layout:
//!
//! ```text
//! 0   revision      u64
//! 8   value length  u32
//! 12  key length in bits 0..17, flags in bits 17..20, wheel stamp in bits 20..32
//! 16  deadline      u64, only with the flag DEADLINE
//! ..  key, then value
//! ```
//!
//! An entry owns its bytes as a `Box` does: it is not `Clone`, and dropping it frees them. Nothing
//! here knows about hashing, locks or time.
#![expect(
    unsafe_code,
    reason = "one allocation with inline key and value needs pointer arithmetic; 215 -> 114 bytes per key"
)]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use flux_types::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use flux_types::{Revision, UnixMillis};

const HEADER_BYTES: usize = 16;
const DEADLINE_BYTES: usize = 8;
const ALIGN: usize = 8;

const KEY_MASK: u32 = (1 << 17) - 1;
const DEADLINE: u32 = 1 << 17;
const PADDED: u32 = 1 << 18;
const STAMP_SHIFT: u32 = 20;
/// Wheel stamps are this many bits wide.
pub(crate) const STAMP_BITS: u32 = 12;

const _: () = assert!(KEY_BYTES_MAX <= KEY_MASK as usize);
const _: () = assert!(VALUE_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(STAMP_SHIFT + STAMP_BITS == u32::BITS);
const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

#[repr(C)]
struct Header {
    revision: u64,
    value_len: u32,
    word: u32,
}

/// One key with its value, revision and deadline, in one allocation.
pub(crate) struct Entry(NonNull<Header>);

// SAFETY: an entry owns its allocation alone, which holds plain bytes.
unsafe impl Send for Entry {}
// SAFETY: through `&Entry` the bytes are only read.
unsafe impl Sync for Entry {}

/// What an entry is made of.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) revision: Revision,
    pub(crate) deadline: Option<UnixMillis>,
}

/// Bytes allocated for an entry whose contents are `used` bytes long. A patched value gets room
/// to grow by an eighth, so that a long row of appends copies each byte a bounded number of times;
/// the room follows from the length, so it needs no field.
const fn allocation_bytes(used: usize, padded: bool) -> usize {
    if !padded {
        return used;
    }
    let step = if used < 512 {
        64
    } else {
        1 << (used.ilog2() - 3)
    };
    used.next_multiple_of(step)
}

impl Entry {
    /// Allocates an entry.
    ///
    /// # Panics
    /// If key or value are longer than any limit allows: evaluation and parsing check before.
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        Self::with_layout(parts, parts.value.len(), false)
    }

    /// The bytes that an entry of these sizes would take.
    pub(crate) const fn bytes_for(key_len: usize, value_len: usize, has_deadline: bool) -> usize {
        let deadline = if has_deadline { DEADLINE_BYTES } else { 0 };
        HEADER_BYTES + deadline + key_len + value_len
    }

    /// `value_len` may exceed `parts.value`: the rest is zeros.
    fn with_layout(parts: Parts<'_>, value_len: usize, padded: bool) -> Self {
        assert!(parts.key.len() <= KEY_BYTES_MAX);
        assert!(value_len <= VALUE_BYTES_MAX);
        assert!(parts.value.len() <= value_len);
        let used = Self::bytes_for(parts.key.len(), value_len, parts.deadline.is_some());
        let layout = layout(allocation_bytes(used, padded));
        // SAFETY: the layout is never of size zero, since a header is in it.
        let raw = unsafe { alloc(layout) };
        let Some(pointer) = NonNull::new(raw.cast::<Header>()) else {
            handle_alloc_error(layout);
        };
        let mut word = u32::try_from(parts.key.len()).unwrap_or(KEY_MASK);
        if parts.deadline.is_some() {
            word |= DEADLINE;
        }
        if padded {
            word |= PADDED;
        }
        let header = Header {
            revision: parts.revision.get(),
            value_len: u32::try_from(value_len).unwrap_or(u32::MAX),
            word,
        };
        // SAFETY: the allocation is at least a header long and aligned for it.
        unsafe { pointer.as_ptr().write(header) };
        let entry = Self(pointer);
        let mut offset = HEADER_BYTES;
        if let Some(deadline) = parts.deadline {
            entry.write_deadline(deadline);
            offset += DEADLINE_BYTES;
        }
        entry.copy_in(offset, parts.key);
        entry.copy_in(offset + parts.key.len(), parts.value);
        entry.zero(
            offset + parts.key.len() + parts.value.len(),
            value_len - parts.value.len(),
        );
        entry
    }

    const fn header(&self) -> &Header {
        // SAFETY: the pointer is valid and the header initialised for as long as `self` lives.
        unsafe { self.0.as_ref() }
    }

    const fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as for `header`, and `&mut self` makes the access exclusive.
        unsafe { self.0.as_mut() }
    }

    const fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: every caller's offset is within the allocation, by the header's lengths.
        unsafe { self.0.as_ptr().cast::<u8>().add(offset) }
    }

    /// Only for entries under construction or owned exclusively.
    fn copy_in(&self, offset: usize, bytes: &[u8]) {
        // SAFETY: callers have room for `bytes` at `offset`; the source is a separate borrow.
        unsafe {
            self.at(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    fn zero(&self, offset: usize, count: usize) {
        // SAFETY: callers have room for `count` bytes at `offset`.
        unsafe { self.at(offset).write_bytes(0, count) };
    }

    fn write_deadline(&self, deadline: UnixMillis) {
        // SAFETY: called only when the layout has a deadline field; offset 16 is aligned to 8.
        unsafe { self.at(HEADER_BYTES).cast::<u64>().write(deadline.get()) };
    }

    const fn has_deadline(&self) -> bool {
        self.header().word & DEADLINE != 0
    }

    const fn key_len(&self) -> usize {
        (self.header().word & KEY_MASK) as usize
    }

    /// Length of the value, in bytes.
    pub(crate) const fn value_len(&self) -> usize {
        self.header().value_len as usize
    }

    const fn key_offset(&self) -> usize {
        HEADER_BYTES
            + if self.has_deadline() {
                DEADLINE_BYTES
            } else {
                0
            }
    }

    /// The key.
    #[inline]
    pub(crate) const fn key(&self) -> &[u8] {
        // SAFETY: the key's bytes are initialised and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at(self.key_offset()), self.key_len()) }
    }

    /// The value.
    #[inline]
    pub(crate) const fn value(&self) -> &[u8] {
        let offset = self.key_offset() + self.key_len();
        // SAFETY: the value's bytes are initialised and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at(offset), self.value_len()) }
    }

    /// The revision of the fact that last changed the key.
    #[inline]
    pub(crate) const fn revision(&self) -> Revision {
        Revision::new(self.header().revision)
    }

    /// When the key expires.
    #[inline]
    pub(crate) const fn deadline(&self) -> Option<UnixMillis> {
        if !self.has_deadline() {
            return None;
        }
        // SAFETY: the flag says that the field is there; it is aligned and initialised.
        let raw = unsafe { self.at(HEADER_BYTES).cast::<u64>().read() };
        Some(UnixMillis::new(raw))
    }

    /// Which of the wheel's items for this key is the current one.
    pub(crate) const fn stamp(&self) -> u32 {
        self.header().word >> STAMP_SHIFT
    }

    /// Sets the stamp, of which [`STAMP_BITS`] bits are kept.
    pub(crate) const fn set_stamp(&mut self, stamp: u32) {
        let header = self.header_mut();
        header.word = (header.word & ((1 << STAMP_SHIFT) - 1)) | (stamp << STAMP_SHIFT);
    }

    /// Bytes of the allocation.
    pub(crate) const fn bytes(&self) -> usize {
        let used = Self::bytes_for(self.key_len(), self.value_len(), self.has_deadline());
        allocation_bytes(used, self.header().word & PADDED != 0)
    }

    /// Replaces value, revision and deadline in place if the allocation has exactly the right
    /// size, else gives back false and changes nothing. The stamp stays.
    pub(crate) fn overwrite(
        &mut self,
        value: &[u8],
        revision: Revision,
        deadline: Option<UnixMillis>,
    ) -> bool {
        if value.len() != self.value_len() || deadline.is_some() != self.has_deadline() {
            return false;
        }
        self.header_mut().revision = revision.get();
        if let Some(deadline) = deadline {
            self.write_deadline(deadline);
        }
        self.copy_in(self.key_offset() + self.key_len(), value);
        true
    }

    /// Replaces the deadline; moves the entry if it had none and gets one, or the reverse.
    pub(crate) fn set_deadline(&mut self, deadline: Option<UnixMillis>, revision: Revision) {
        if deadline.is_some() != self.has_deadline() {
            let stamp = self.stamp();
            *self = Self::new(Parts {
                key: self.key(),
                value: self.value(),
                revision,
                deadline,
            });
            self.set_stamp(stamp);
            return;
        }
        self.header_mut().revision = revision.get();
        if let Some(deadline) = deadline {
            self.write_deadline(deadline);
        }
    }

    /// Writes `bytes` at `offset` of the value, which grows (with zeros in any gap) as needed.
    ///
    /// # Panics
    /// If the value would be longer than any limit allows.
    pub(crate) fn patch(&mut self, offset: usize, bytes: &[u8], revision: Revision) {
        let old_len = self.value_len();
        let end = offset + bytes.len();
        let new_len = end.max(old_len);
        assert!(new_len <= VALUE_BYTES_MAX);
        let new_used = Self::bytes_for(self.key_len(), new_len, self.has_deadline());
        if new_len > old_len {
            if allocation_bytes(new_used, self.header().word & PADDED != 0) == self.bytes() {
                let value_offset = self.key_offset() + self.key_len();
                self.zero(value_offset + old_len, new_len - old_len);
                self.header_mut().value_len = u32::try_from(new_len).unwrap_or(u32::MAX);
            } else {
                let stamp = self.stamp();
                let parts = Parts {
                    key: self.key(),
                    value: self.value(),
                    revision,
                    deadline: self.deadline(),
                };
                *self = Self::with_layout(parts, new_len, true);
                self.set_stamp(stamp);
            }
        }
        self.header_mut().revision = revision.get();
        self.copy_in(self.key_offset() + self.key_len() + offset, bytes);
    }

    /// Asks the processor to load the start of the entry.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch(self.0.as_ptr().cast::<u8>());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let layout = layout(self.bytes());
        // SAFETY: allocated with this same layout, which the header determines; freed once.
        unsafe { dealloc(self.0.as_ptr().cast::<u8>(), layout) };
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The value stays out of logs.
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("value_len", &self.value_len())
            .field("revision", &self.revision())
            .field("deadline", &self.deadline())
            .finish()
    }
}

const fn layout(bytes: usize) -> Layout {
    assert!(bytes <= isize::MAX as usize - ALIGN);
    // SAFETY: the alignment is a power of two, and the size was checked to stay below the limit.
    unsafe { Layout::from_size_align_unchecked(bytes, ALIGN) }
}

/// Asks the processor to load the cache line at `address`, which need not be valid.
#[inline]
pub(crate) fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint; it reads nothing the program can see and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast::<i8>()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = address;
    }
}

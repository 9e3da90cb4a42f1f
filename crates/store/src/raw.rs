//! The entry as one allocation, and the only unsafe code of this room.
//!
//! Hot path: every read and write touches an [`Entry`]. A table slot holds one thin pointer, and
//! what it points to holds everything about the key, because the naive two buffers and a struct
//! cost 215 bytes for 80 bytes of payload where this costs 114 (`docs/design/`). Layout:
//!
//! ```text
//! 0   head          u64: revision in bits 0..48, flags in 48..52, then for short entries
//!                   the lengths: key in 52..57, value in 57..64
//! 8   lengths       u32 value, u32 key; only with the flag WIDE
//! ..  deadline      u64, only with the flag DEADLINE; with a stamp in its low bits unless FAR
//! ..  key, then value
//! ```
//!
//! Keys of up to 31 and values of up to 127 bytes thus pay 8 bytes; a key of 16 with a value of
//! 64 stays in the allocators' 96-byte class even where they keep 8 bytes for themselves.
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

const HEAD_BYTES: usize = 8;
const WIDE_BYTES: usize = 8;
const DEADLINE_BYTES: usize = 8;
const ALIGN: usize = 8;

/// Revisions have this many bits: at a million facts a second, they last nine years.
pub(crate) const REVISION_BITS: u32 = 48;
const REVISION_MASK: u64 = (1 << REVISION_BITS) - 1;
const DEADLINE: u64 = 1 << 48;
const PADDED: u64 = 1 << 49;
const WIDE: u64 = 1 << 50;
const FAR: u64 = 1 << 51;
const KEY_SHIFT: u32 = 52;
const VALUE_SHIFT: u32 = 57;
/// Longest key and value whose lengths fit in the head.
const KEY_SHORT: usize = 31;
const VALUE_SHORT: usize = 127;

/// Wheel stamps are this many bits wide.
pub(crate) const STAMP_BITS: u32 = 12;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;

const _: () = assert!(KEY_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(VALUE_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(KEY_SHORT < 1 << (VALUE_SHIFT - KEY_SHIFT));
const _: () = assert!(VALUE_SHORT < 1 << (u64::BITS - VALUE_SHIFT));

/// One key with its value, revision and deadline, in one allocation.
pub(crate) struct Entry(NonNull<u64>);

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

/// The head of an entry with these lengths, and what it needs beyond.
const fn head_of(key_len: usize, value_len: usize, has_deadline: bool, padded: bool) -> u64 {
    let mut head = 0;
    if has_deadline {
        head |= DEADLINE;
    }
    // A padded entry is wide, so that it can grow in place.
    if padded {
        head |= PADDED | WIDE;
    } else if KEY_SHORT < key_len || VALUE_SHORT < value_len {
        head |= WIDE;
    } else {
        head |= ((key_len as u64) << KEY_SHIFT) | ((value_len as u64) << VALUE_SHIFT);
    }
    head
}

/// Where the key begins in an entry with this head.
const fn key_offset(head: u64) -> usize {
    deadline_offset(head)
        + if head & DEADLINE != 0 {
            DEADLINE_BYTES
        } else {
            0
        }
}

/// Where the deadline lies, if there is one.
const fn deadline_offset(head: u64) -> usize {
    HEAD_BYTES + if head & WIDE != 0 { WIDE_BYTES } else { 0 }
}

impl Entry {
    /// Allocates an entry, with stamp 0.
    ///
    /// # Panics
    /// If key, value or revision are beyond any limit: evaluation and parsing check before.
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        Self::with_layout(parts, parts.value.len(), false)
    }

    /// The bytes that an entry of these sizes would take.
    pub(crate) const fn bytes_for(key_len: usize, value_len: usize, has_deadline: bool) -> usize {
        key_offset(head_of(key_len, value_len, has_deadline, false)) + key_len + value_len
    }

    /// `value_len` may exceed `parts.value`: the rest is zeros.
    fn with_layout(parts: Parts<'_>, value_len: usize, padded: bool) -> Self {
        let key_len = parts.key.len();
        assert!(key_len <= KEY_BYTES_MAX);
        assert!(value_len <= VALUE_BYTES_MAX);
        assert!(parts.value.len() <= value_len);
        assert!(parts.revision.get() <= REVISION_MASK);
        let head = head_of(key_len, value_len, parts.deadline.is_some(), padded);
        let offset = key_offset(head);
        let used = offset + key_len + value_len;
        let layout = layout(allocation_bytes(used, padded));
        // SAFETY: the layout is never of size zero, since a head is in it.
        let raw = unsafe { alloc(layout) };
        let Some(pointer) = NonNull::new(raw.cast::<u64>()) else {
            handle_alloc_error(layout);
        };
        let mut entry = Self(pointer);
        entry.write_word(0, head | parts.revision.get());
        if head & WIDE != 0 {
            entry.write_word(HEAD_BYTES, ((key_len as u64) << 32) | value_len as u64);
        }
        if let Some(deadline) = parts.deadline {
            entry.write_deadline(deadline, 0);
        }
        entry.copy_in(offset, parts.key);
        entry.copy_in(offset + key_len, parts.value);
        entry.zero(
            offset + key_len + parts.value.len(),
            value_len - parts.value.len(),
        );
        entry
    }

    #[inline]
    const fn head(&self) -> u64 {
        // SAFETY: the head is initialised and aligned for as long as `self` lives.
        unsafe { self.0.as_ptr().read() }
    }

    #[inline]
    const fn at(&self, offset: usize) -> *mut u8 {
        // SAFETY: every caller's offset is within the allocation, by the head's lengths.
        unsafe { self.0.as_ptr().cast::<u8>().add(offset) }
    }

    /// Reads the word at an offset that is a multiple of 8 and within the words before the key.
    #[inline]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "offsets of words are multiples of 8"
    )]
    const fn word(&self, offset: usize) -> u64 {
        // SAFETY: the word is in the allocation, aligned and initialised.
        unsafe { self.at(offset).cast::<u64>().read() }
    }

    #[inline]
    #[expect(
        clippy::cast_ptr_alignment,
        reason = "offsets of words are multiples of 8"
    )]
    const fn write_word(&mut self, offset: usize, word: u64) {
        // SAFETY: the word is in the allocation and aligned, and `&mut self` is exclusive.
        unsafe { self.at(offset).cast::<u64>().write(word) };
    }

    const fn copy_in(&mut self, offset: usize, bytes: &[u8]) {
        // SAFETY: callers have room for `bytes` at `offset`; the source is a separate borrow.
        unsafe {
            self.at(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    const fn zero(&mut self, offset: usize, count: usize) {
        // SAFETY: callers have room for `count` bytes at `offset`.
        unsafe { self.at(offset).write_bytes(0, count) };
    }

    /// Only for entries whose head has the flag DEADLINE.
    const fn write_deadline(&mut self, deadline: UnixMillis, stamp: u32) {
        let head = self.head();
        debug_assert!(head & DEADLINE != 0);
        let raw = deadline.get();
        let is_far = raw >> (u64::BITS - STAMP_BITS) != 0;
        let (head, word) = if is_far {
            (head | FAR, raw)
        } else {
            let stamp = stamp as u64 & STAMP_MASK;
            (head & !FAR, (raw << STAMP_BITS) | stamp)
        };
        self.write_word(0, head);
        self.write_word(deadline_offset(head), word);
    }

    const fn set_revision(&mut self, revision: Revision) {
        assert!(revision.get() <= REVISION_MASK);
        let head = self.head();
        self.write_word(0, (head & !REVISION_MASK) | revision.get());
    }

    const fn has_deadline(&self) -> bool {
        self.head() & DEADLINE != 0
    }

    /// Offset of the key, and the lengths of key and value.
    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each length has at most 32 bits"
    )]
    const fn extent(&self) -> (usize, usize, usize) {
        let head = self.head();
        if head & WIDE != 0 {
            let lengths = self.word(HEAD_BYTES);
            let (key_len, value_len) = ((lengths >> 32) as usize, lengths as u32 as usize);
            return (key_offset(head), key_len, value_len);
        }
        let key_len = (head >> KEY_SHIFT) as usize & KEY_SHORT;
        (key_offset(head), key_len, (head >> VALUE_SHIFT) as usize)
    }

    /// Length of the value, in bytes.
    pub(crate) const fn value_len(&self) -> usize {
        self.extent().2
    }

    /// The key.
    #[inline]
    pub(crate) const fn key(&self) -> &[u8] {
        let (offset, key_len, _) = self.extent();
        // SAFETY: the key's bytes are initialised and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at(offset), key_len) }
    }

    /// The value.
    #[inline]
    pub(crate) const fn value(&self) -> &[u8] {
        let (offset, key_len, value_len) = self.extent();
        // SAFETY: the value's bytes are initialised and live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.at(offset + key_len), value_len) }
    }

    /// The revision of the fact that last changed the key.
    #[inline]
    pub(crate) const fn revision(&self) -> Revision {
        Revision::new(self.head() & REVISION_MASK)
    }

    /// When the key expires.
    #[inline]
    pub(crate) const fn deadline(&self) -> Option<UnixMillis> {
        let head = self.head();
        if head & DEADLINE == 0 {
            return None;
        }
        let word = self.word(deadline_offset(head));
        Some(UnixMillis::new(if head & FAR != 0 {
            word
        } else {
            word >> STAMP_BITS
        }))
    }

    /// Which of the wheel's items for this key is the current one; 0 where none can be.
    pub(crate) const fn stamp(&self) -> u32 {
        let head = self.head();
        if head & (DEADLINE | FAR) != DEADLINE {
            return 0;
        }
        (self.word(deadline_offset(head)) & STAMP_MASK) as u32
    }

    /// Sets the stamp, of which [`STAMP_BITS`] bits are kept; of no effect without a deadline.
    pub(crate) const fn set_stamp(&mut self, stamp: u32) {
        if let Some(deadline) = self.deadline() {
            self.write_deadline(deadline, stamp);
        }
    }

    /// Bytes of the allocation.
    pub(crate) const fn bytes(&self) -> usize {
        let (offset, key_len, value_len) = self.extent();
        allocation_bytes(offset + key_len + value_len, self.head() & PADDED != 0)
    }

    /// Replaces value, revision and deadline in place if the allocation has exactly the right
    /// size, else gives back false and changes nothing. The stamp is then to be set.
    pub(crate) const fn overwrite(
        &mut self,
        value: &[u8],
        revision: Revision,
        deadline: Option<UnixMillis>,
    ) -> bool {
        let (offset, key_len, value_len) = self.extent();
        if value.len() != value_len || deadline.is_some() != self.has_deadline() {
            return false;
        }
        self.set_revision(revision);
        if let Some(deadline) = deadline {
            self.write_deadline(deadline, 0);
        }
        self.copy_in(offset + key_len, value);
        true
    }

    /// Replaces the deadline; moves the entry if it had none and gets one, or the reverse. The
    /// stamp is then to be set.
    pub(crate) fn set_deadline(&mut self, deadline: Option<UnixMillis>, revision: Revision) {
        if deadline.is_some() != self.has_deadline() {
            *self = Self::new(Parts {
                key: self.key(),
                value: self.value(),
                revision,
                deadline,
            });
            return;
        }
        self.set_revision(revision);
        if let Some(deadline) = deadline {
            self.write_deadline(deadline, 0);
        }
    }

    /// Writes `bytes` at `offset` of the value, which grows (with zeros in any gap) as needed.
    ///
    /// # Panics
    /// If the value would be longer than any limit allows.
    pub(crate) fn patch(&mut self, offset: usize, bytes: &[u8], revision: Revision) {
        let (key_start, key_len, old_len) = self.extent();
        let new_len = old_len.max(offset + bytes.len());
        assert!(new_len <= VALUE_BYTES_MAX);
        if old_len < new_len {
            let used = key_start + key_len + new_len;
            let is_padded = self.head() & PADDED != 0;
            if is_padded && allocation_bytes(used, true) == self.bytes() {
                self.zero(key_start + key_len + old_len, new_len - old_len);
                self.write_word(HEAD_BYTES, ((key_len as u64) << 32) | new_len as u64);
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
        self.set_revision(revision);
        let (key_start, key_len, _) = self.extent();
        self.copy_in(key_start + key_len + offset, bytes);
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

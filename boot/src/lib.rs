//! From a file to a bootable guest.

//! The assist: completes in user space what KVM cannot run in ring 0 on interpreted hosts.

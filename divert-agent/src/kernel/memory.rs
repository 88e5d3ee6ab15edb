//! Giving memory back that was needed once.

/// Hands pages that the allocator keeps for later to the kernel. To be called behind work that takes many times the
/// memory of what comes of it, such as reading the types of the running kernel; costs some hundred microseconds.
pub fn give_back() {
    // glibc's allocator keeps what lies below memory in use; others are left to their own judgement.
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim touches only what nobody has allocated.
    unsafe {
        libc::malloc_trim(0);
    }
}

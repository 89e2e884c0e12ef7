// Loops compiled once for each sort of processor, of which the machine picks the one for itself.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12 && !defined(__clang__)
#define FOR_THIS_MACHINE __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define FOR_THIS_MACHINE
#endif

#if defined(__GNUC__)
#define ALWAYS_INLINE inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE inline
#endif

/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
#ifndef AF_LOG2_H
#define AF_LOG2_H
#define roundup_pow_of_two(n) ((n) <= 1 ? 1UL : 1UL << (64 - __builtin_clzl((unsigned long)(n) - 1)))
#endif

/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* bcc carries its own uapi/linux/bpf.h, which includes this; classic BPF opcodes are not used here. */
#ifndef AF_BPF_COMMON_H
#define AF_BPF_COMMON_H
#endif

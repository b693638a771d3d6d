/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The only configuration switch bcc's helpers.h checks. */
#ifndef AF_AUTOCONF_H
#define AF_AUTOCONF_H
#define CONFIG_BPF_SYSCALL 1
#endif

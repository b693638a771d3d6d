/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* The loader passes the running kernel's version: uprobe programs of kernels before 5.0 are checked for it. */
#ifndef AF_VERSION_H
#define AF_VERSION_H
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#ifdef AF_LINUX_VERSION_CODE
#define LINUX_VERSION_CODE AF_LINUX_VERSION_CODE
#else
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 15, 0)
#endif
#endif

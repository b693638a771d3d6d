/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* bcc force-includes this file; kernels use it to pull in their configuration. */
#ifndef AF_KCONFIG_H
#define AF_KCONFIG_H
#include <generated/autoconf.h>
#endif

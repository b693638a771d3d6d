/* SPDX-License-Identifier: (MIT OR GPL-2.0-only) */
/* struct pt_regs as uprobe programs see it (arch/x86/include/asm/ptrace.h, arch/arm64 user_pt_regs). */
#ifndef AF_UAPI_PTRACE_H
#define AF_UAPI_PTRACE_H
#if defined(__TARGET_ARCH_arm64)
struct pt_regs {
	unsigned long regs[31];
	unsigned long sp;
	unsigned long pc;
	unsigned long pstate;
};
#else
struct pt_regs {
	unsigned long r15;
	unsigned long r14;
	unsigned long r13;
	unsigned long r12;
	unsigned long bp;
	unsigned long bx;
	unsigned long r11;
	unsigned long r10;
	unsigned long r9;
	unsigned long r8;
	unsigned long ax;
	unsigned long cx;
	unsigned long dx;
	unsigned long si;
	unsigned long di;
	unsigned long orig_ax;
	unsigned long ip;
	unsigned long cs;
	unsigned long flags;
	unsigned long sp;
	unsigned long ss;
};
#endif
#endif

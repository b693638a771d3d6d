/* Prints the notes of a core through the system's own structures: sys/procfs.h, signal.h. */
#include <elf.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/procfs.h>
#include <sys/user.h>

int main(int argc, char **argv)
{
	static char raw[1 << 22];
	FILE *file = fopen(argv[argc - 1], "r");
	size_t size = fread(raw, 1, sizeof(raw), file);
	Elf64_Ehdr *head = (Elf64_Ehdr *)raw;
	Elf64_Phdr *notes = (Elf64_Phdr *)(raw + head->e_phoff);
	printf("sizes %zu %zu %zu\n", sizeof(struct elf_prstatus), sizeof(struct elf_prpsinfo),
	       sizeof(struct user_regs_struct));
	for (size_t at = notes->p_offset; at < notes->p_offset + notes->p_filesz && at < size;) {
		Elf64_Nhdr *note = (Elf64_Nhdr *)(raw + at);
		char *name = (char *)(note + 1), *desc = name + ((note->n_namesz + 3) & ~3u);
		if (note->n_type == NT_PRSTATUS) {
			struct elf_prstatus *s = (void *)desc;
			struct user_regs_struct *r = (void *)&s->pr_reg;
			printf("prstatus %d %d %d %d %d %d %llx %llx %d\n", s->pr_cursig, s->pr_info.si_signo, s->pr_pid,
			       s->pr_ppid, s->pr_pgrp, s->pr_sid, (unsigned long long)r->rip,
			       (unsigned long long)r->gs, s->pr_fpvalid);
		} else if (note->n_type == NT_PRPSINFO) {
			struct elf_prpsinfo *p = (void *)desc;
			printf("prpsinfo %d %c %d %d %lx %u %u %d %d %d %d %.16s|%.80s\n", p->pr_state, p->pr_sname,
			       p->pr_zomb, p->pr_nice, p->pr_flag, p->pr_uid, p->pr_gid, p->pr_pid, p->pr_ppid,
			       p->pr_pgrp, p->pr_sid, p->pr_fname, p->pr_psargs);
		} else if (note->n_type == NT_SIGINFO) {
			siginfo_t *info = (void *)desc;
			printf("siginfo %d %d %p\n", info->si_signo, info->si_code, info->si_addr);
		} else {
			printf("note %s %x %u\n", name, note->n_type, note->n_descsz);
		}
		at = (size_t)(desc - raw) + ((note->n_descsz + 3) & ~3u);
	}
	return 0;
}

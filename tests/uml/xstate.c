/*
 * Lets User-Mode Linux 6.1 run on CPUs with AMX.
 *
 * It keeps 2,696 bytes of a process's extended registers, which is all up to AVX-512, and gives them back by
 * PTRACE_SETREGSET. The host takes back its own whole state or nothing (xstateregs_set in arch/x86/kernel/fpu/regset.c),
 * and with AMX that is some 11,000 bytes: EFAULT, and User-Mode Linux ends with its first process. Preloaded, this stands
 * before the C library's ptrace and adds what is missing as zeroes, which say that AMX is not in use; no process inside
 * has asked for it (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* Static: it is called on a kernel's stack, by one thread. */
static unsigned char whole[1 << 16];
static size_t whole_size;

static long plain(long request, pid_t pid, void *address, void *data)
{
	/* The system call stores what is peeked at; the C library returns it. */
	long peeked;
	int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
	long result = syscall(SYS_ptrace, request, pid, address, peeks ? &peeked : data);

	if (result < 0 || !peeks)
		return result;
	errno = 0;
	return peeked;
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request != PTRACE_SETREGSET || (unsigned long)address != NT_X86_XSTATE)
		return plain(request, pid, address, data);
	const struct iovec *given = data;
	if (whole_size == 0) {
		struct iovec all = { whole, sizeof(whole) };

		if (plain(PTRACE_GETREGSET, pid, address, &all) < 0)
			return -1;
		whole_size = all.iov_len;
		memset(whole, 0, sizeof(whole));
	}
	if (given->iov_len >= whole_size)
		return plain(request, pid, address, data);
	memcpy(whole, given->iov_base, given->iov_len);
	struct iovec all = { whole, whole_size };
	return plain(request, pid, address, &all);
}

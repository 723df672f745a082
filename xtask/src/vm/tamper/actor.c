// SPDX-License-Identifier: Apache-2.0
/*
 * Runs inside of a container and has its credentials tampered with when it is told to:
 *
 *   actor <word for /dev/tamper> <main|worker> <exec|fork|exit|idle> <file to wait for>
 *
 * The thread that was tampered with at once executes a program, forks a child that ends, ends, or does nothing any
 * more. Whatever fails leaves the process hanging, so that its end says that all went well.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static char **arguments;
static int device;

static void hang(void)
{
	for (;;)
		pause();
}

/* Only the named system call comes after the tampering, for every other one is a chance to be seen. */
static void tamper(void)
{
	const char *word = arguments[1], *then = arguments[3];
	char *end[] = { arguments[0], "end", NULL }, *empty[] = { NULL };
	size_t length = strlen(word);
	pid_t child;

	if (write(device, word, length) != (ssize_t)length)
		hang();
	switch (then[2]) {
	case 'e': /* exec */
		execve("/proc/self/exe", end, empty);
		break;
	case 'r': /* fork */
		child = fork();
		if (child == 0)
			_exit(0);
		if (child > 0 && waitpid(child, NULL, 0) == child)
			return;
		break;
	case 'i': /* exit */
		return;
	}
	hang();
}

static void *work(void *unused)
{
	tamper();
	return unused;
}

int main(int count, char **words)
{
	bool worker;
	pthread_t thread;

	if (count == 2 && !strcmp(words[1], "end"))
		return 0;
	if (count != 5)
		return 2;
	arguments = words;
	worker = !strcmp(words[2], "worker");
	device = open("/dev/tamper", O_WRONLY);
	if (device < 0)
		hang();
	while (access(words[4], F_OK))
		usleep(1000);
	if (!worker)
		tamper();
	else if (pthread_create(&thread, NULL, work, NULL) || pthread_join(thread, NULL))
		hang();
	_exit(0);
}

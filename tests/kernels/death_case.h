/* SPDX-License-Identifier: Apache-2.0 */
/* Tests that what must not happen ends the process with the right words: in a child, whose stderr is
 * read. */
#ifndef DOSEMAP_TESTS_DEATH_CASE_H
#define DOSEMAP_TESTS_DEATH_CASE_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WITH_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef WITH_ADDRESS_SANITIZER
#define WITH_ADDRESS_SANITIZER 0
#endif

/* What the child wrote, and how it ended: a status of waitpid(). */
template <class Function> static inline std::string run_in_child(Function function, int *status)
{
    int ends[2];
    fflush(stderr);
    if (pipe(ends) != 0)
        abort();
    const pid_t child = fork();
    if (child < 0)
        abort();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        function();
        _exit(0);
    }
    close(ends[1]);
    std::string text;
    char part[4096];
    for (ssize_t got; (got = read(ends[0], part, sizeof part)) > 0;)
        text.append(part, (size_t)got);
    close(ends[0]);
    if (waitpid(child, status, 0) != child)
        abort();
    return text;
}

/* Aborts, or is stopped by the address sanitizer, and says all the words. */
template <class Function, class... Words>
static inline bool dies(Function function, const Words &...words)
{
    int status = 0;
    const std::string text = run_in_child(function, &status);
    bool said = true;
    for (const std::string &word : std::vector<std::string>{std::string(words)...})
        said = said && text.find(word) != std::string::npos;
    const bool dead = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    if (!dead || !said)
        fprintf(stderr, "%s, status %d, said:\n%s\n", dead ? "died" : "did not die", status,
                text.c_str());
    return dead && said;
}

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of the library that take time: each in a thread of its own, while the Python thread that asked
 * for it waits without the GIL, looks after signals and passes on progress.
 *
 * A thread of its own, because OpenMP's threads belong to the one that first used them: in a forked
 * child they are gone, and the thread that forked would wait for them.
 */
#ifndef DOSEMAP_BINDING_DETACHED_H
#define DOSEMAP_BINDING_DETACHED_H

#include <atomic>
#include <functional>
#include <mutex>
#include <thread>

#include "binding/binding.h"

namespace binding
{

/* A callable of share and stage, that cancels by returning true; or none. */
using progress_callback = std::optional<nb::typed<nb::callable, nb::object(double, nb::str)>>;

/* What is shared between the thread that works and the one that waits. */
class progress
{
  public:
    /* The library's dm_progress, whose user is a progress. */
    static int report(void *user, double share, const char *stage);

    void cancel()
    {
        cancelled = true;
    }
    /* True, and the last report, if there was one since the last time. */
    bool take(double *share, std::string *stage);

  private:
    std::atomic<bool> cancelled{false};
    std::mutex mutex;
    bool unseen = false;
    double last_share = 0;
    char last_stage[64] = "";
};

/* Only one thread at a time may hold it. */
class turn
{
  public:
    /* Waits without the GIL. Raises what a signal's handler raises; and where this thread holds it
     * already, or a thread that a fork left behind. */
    void take();
    void release();

    /* Held when a fork left its holder behind: what it stands for may be half done. */
    bool is_lost() const
    {
        return lost;
    }

  private:
    friend void forget_other_threads();
    const std::thread::id nobody{};
    std::thread::id holder;
    bool lost = false;
};

using work = std::function<dm_status(dm_error *)>;

/* Runs `work`, and raises if it fails. Signals' handlers run meanwhile; what they raise is raised at
 * the end, which `report` brings near where the library is given it as its progress. */
void run_detached(const work &work);
void run_detached(const work &work, progress &report, const progress_callback &callback);

/* The text that `work` makes. */
nb::str text_detached(const std::function<dm_status(char **, dm_error *)> &work);

/* Ends what is running when the process ends, and lets a forked child go on. Once, at import. */
void watch_process();

} // namespace binding

#endif

/* SPDX-License-Identifier: Apache-2.0 */
#include "binding/detached.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <new>
#include <system_error>

#include <pthread.h>
#include <unistd.h>

namespace binding
{

namespace
{

/* How long a signal waits for its handler, and progress for its callback. */
constexpr std::chrono::milliseconds beat(50);

/* A call that is running. */
struct job {
    progress *report;
    bool done = false;
    bool lost = false; /* its thread stayed behind when this process was forked */
};

/* What all threads know, under the mutex, which is never held by one that waits for the GIL. */
struct process_state {
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<job *> jobs;
    std::vector<turn *> turns; /* that are held */
};

/* Never destroyed: threads may outlive this library's other statics. */
process_state &process()
{
    static process_state *state = new process_state;
    return *state;
}

template <class T> void forget(std::vector<T *> &all, T *one)
{
    all.erase(std::remove(all.begin(), all.end(), one), all.end());
}

[[noreturn]] void stop_this_thread()
{
    for (;;)
        pause();
}

/* The time without the GIL. Python before 3.14 ends a daemon thread that asks for the GIL when the
 * interpreter is gone by unwinding its stack, on which work may still be going on: such a thread is
 * stopped instead. */
class without_gil
{
  public:
    without_gil() : state(PyEval_SaveThread())
    {
    }
    void end()
    {
        try {
            PyEval_RestoreThread(state);
        } catch (...) {
            stop_this_thread();
        }
    }

  private:
    PyThreadState *state;
};

/* Signals are for the threads that Python knows, except those that a fault of ours would raise. */
class signals_blocked
{
  public:
    signals_blocked()
    {
        sigset_t set;
        sigfillset(&set);
        for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS})
            sigdelset(&set, fault);
        pthread_sigmask(SIG_SETMASK, &set, &before);
    }
    ~signals_blocked()
    {
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

  private:
    sigset_t before;
};

[[noreturn]] void raise_no_thread(const std::system_error &failure)
{
    dm_error no_thread = {};
    no_thread.status = DM_ERROR_DEVICE;
    std::snprintf(no_thread.what, sizeof no_thread.what, "a thread could not be started: %s",
                  failure.code().message().c_str());
    std::snprintf(no_thread.remedy, sizeof no_thread.remedy,
                  "raise the limit of processes (ulimit -u), or end other programs");
    raise(no_thread);
}

/* One call: its thread, and what it came to. */
class running
{
  public:
    running(const work &task, progress &report) : state{&report}
    {
        {
            std::lock_guard<std::mutex> lock(process().mutex);
            process().jobs.push_back(&state);
        }
        try {
            signals_blocked blocked;
            thread = new std::thread([this, &task] { run(task); });
        } catch (const std::system_error &failure) {
            end();
            raise_no_thread(failure);
        } catch (...) {
            end();
            throw;
        }
    }
    ~running()
    {
        /* Of a thread that a fork left behind only the name is here. */
        if (!state.lost) {
            without_gil waiting;
            thread->join();
            waiting.end();
            delete thread;
        }
        end();
    }
    running(const running &) = delete;
    running &operator=(const running &) = delete;

    /* Waits without the GIL, for a beat at most. */
    bool is_done()
    {
        without_gil waiting;
        {
            std::unique_lock<std::mutex> lock(process().mutex);
            process().changed.wait_for(lock, beat, [this] { return state.done || state.lost; });
        }
        waiting.end();
        if (state.lost)
            throw std::runtime_error("this call runs in another process: a progress callback or a "
                                     "signal's handler has forked, and the child came back to it");
        return state.done;
    }

    dm_status status = DM_OK;
    dm_error error = {};

  private:
    void run(const work &task) noexcept
    {
        try {
            status = task(&error);
        } catch (const std::exception &failure) {
            status = error.status = DM_ERROR_MEMORY;
            std::snprintf(error.what, sizeof error.what, "%s", failure.what());
        }
        std::lock_guard<std::mutex> lock(process().mutex);
        state.done = true;
        process().changed.notify_all();
    }
    void end()
    {
        std::lock_guard<std::mutex> lock(process().mutex);
        forget(process().jobs, &state);
    }

    job state;
    std::thread *thread = nullptr;
};

void check_signals()
{
    if (PyErr_CheckSignals() != 0)
        throw nb::python_error();
}

/* True if the callback asks to stop. */
bool tell(progress &report, const progress_callback &callback)
{
    double share;
    std::string stage;
    if (!callback || !report.take(&share, &stage))
        return false;
    nb::object answer = (*callback)(share, text(stage.c_str()));
    int stop = PyObject_IsTrue(answer.ptr());
    if (stop < 0)
        throw nb::python_error();
    return stop > 0;
}

} // namespace

/* ---- Progress ------------------------------------------------------------------------------- */

int progress::report(void *user, double share, const char *stage)
{
    progress *p = static_cast<progress *>(user);
    std::lock_guard<std::mutex> lock(p->mutex);
    p->unseen = true;
    p->last_share = share;
    std::snprintf(p->last_stage, sizeof p->last_stage, "%s", stage ? stage : "");
    return p->cancelled;
}

bool progress::take(double *share, std::string *stage)
{
    std::lock_guard<std::mutex> lock(mutex);
    if (!unseen)
        return false;
    unseen = false;
    *share = last_share;
    *stage = last_stage;
    return true;
}

/* ---- Calls ---------------------------------------------------------------------------------- */

void run_detached(const work &task)
{
    progress none;
    run_detached(task, none, std::nullopt);
}

void run_detached(const work &task, progress &report, const progress_callback &callback)
{
    std::exception_ptr raised;
    bool stopped = false;
    dm_error error;
    {
        running call(task, report);
        for (bool done = false; !done;) {
            done = call.is_done();
            if (raised || stopped)
                continue;
            try {
                check_signals();
                stopped = tell(report, callback);
            } catch (const std::exception &) {
                raised = std::current_exception();
            } catch (...) {
                stop_this_thread(); /* see without_gil */
            }
            if (raised || stopped)
                report.cancel();
        }
        error = call.error;
        error.status = call.status;
    }
    if (raised)
        std::rethrow_exception(raised);
    if (error.status == DM_OK && stopped) {
        error.status = DM_CANCELLED;
        std::snprintf(error.what, sizeof error.what, "cancelled");
    }
    if (error.status != DM_OK)
        raise(error);
}

nb::str text_detached(const std::function<dm_status(char **, dm_error *)> &task)
{
    made_string made;
    run_detached([&](dm_error *err) { return task(made.put(), err); });
    return text(made.get());
}

/* ---- Turns ---------------------------------------------------------------------------------- */

void turn::take()
{
    std::thread::id self = std::this_thread::get_id();
    for (bool taken = false; !taken;) {
        bool again;
        without_gil waiting;
        {
            process_state &all = process();
            std::unique_lock<std::mutex> lock(all.mutex);
            again = holder == self;
            if (!again && !lost)
                taken = all.changed.wait_for(lock, beat, [this] { return holder == nobody; });
            if (taken) {
                holder = self;
                all.turns.push_back(this);
            }
        }
        waiting.end();
        if (lost)
            throw std::runtime_error("this predictor was at work when the process was forked, and "
                                     "cannot be used in the child; make another");
        if (again)
            throw std::runtime_error(
                "this predictor is at work in this thread: a progress callback "
                "or a signal's handler cannot use it; make another");
        if (!taken)
            check_signals();
    }
}

void turn::release()
{
    std::lock_guard<std::mutex> lock(process().mutex);
    forget(process().turns, this);
    holder = nobody;
    process().changed.notify_all();
}

/* ---- The process ---------------------------------------------------------------------------- */

/* In a forked child: the other threads are gone, and with them whatever they were doing. */
void forget_other_threads()
{
    process_state &all = process();
    for (job *j : all.jobs)
        j->lost = true;
    for (turn *t : all.turns)
        t->lost = true;
    /* The condition still counts threads that waited. Its destructor would wait for them. */
    new (&all) process_state;
}

/* Nothing may be computing while the process takes its libraries down. */
static void end_what_is_running()
{
    process_state &all = process();
    std::unique_lock<std::mutex> lock(all.mutex);
    for (job *j : all.jobs)
        j->report->cancel();
    all.changed.wait(lock, [&all] {
        return std::all_of(all.jobs.begin(), all.jobs.end(), [](job *j) { return j->done; });
    });
}

void watch_process()
{
    pthread_atfork([] { process().mutex.lock(); }, [] { process().mutex.unlock(); },
                   forget_other_threads);
    Py_AtExit(end_what_is_running);
}

} // namespace binding

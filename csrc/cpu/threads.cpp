#include "threads.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace mme {
namespace {

struct Job {
  long count, grain;
  Task task;
  void* context;
  std::atomic<long> next{0};
  std::fenv_t arithmetic{};  // its caller's: whether denormal numbers are kept is each thread's own

  void work() {
    for (;;) {
      const long begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      task(context, begin, std::min(begin + grain, count));
    }
  }
};

class Pool {
 public:
  std::mutex busy;  // held by the caller whose job runs

  void run(Job& job, int helpers) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < helpers; ++workers_) std::thread([this] { serve(); }).detach();
      job_ = &job, wanted_ = helpers, running_ = 0;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // who has not begun need not
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ != nullptr && wanted_ > 0; });
      Job* job = job_;
      --wanted_, ++running_;
      lock.unlock();
      std::fesetenv(&job->arithmetic);
      job->work();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int workers_ = 0, wanted_ = 0, running_ = 0;
};

// Never destroyed: its threads end with the process. A forked child has none of them, so it starts
// with a pool of its own.
std::atomic<Pool*> pool{nullptr};

Pool& current_pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  (void)registered;
  Pool* mine = pool.load();
  if (mine == nullptr) {
    Pool* fresh = new Pool;
    if (pool.compare_exchange_strong(mine, fresh)) return *fresh;
    delete fresh;  // another thread was first
  }
  return *mine;
}

}  // namespace

void parallel(long count, long grain, int threads, Task task, void* context) {
  if (count <= 0) return;
  const long pieces = (count + grain - 1) / grain;
  const int helpers = static_cast<int>(std::min<long>(threads, pieces)) - 1;
  if (helpers > 0) {
    Pool& shared = current_pool();
    std::unique_lock<std::mutex> turn(shared.busy, std::try_to_lock);
    if (turn.owns_lock()) {
      Job job{count, grain, task, context};
      std::fegetenv(&job.arithmetic);
      shared.run(job, helpers);
      return;
    }
  }
  task(context, 0, count);
}

}  // namespace mme

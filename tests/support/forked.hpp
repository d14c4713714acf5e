// SPDX-License-Identifier: Apache-2.0
#pragma once

// Under sanitizers the child of a process that has threads may find their locks taken for ever.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define EXPAR_TEST_NO_FORK
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define EXPAR_TEST_NO_FORK
#endif
#endif
#if __has_include(<sys/wait.h>) && !defined(EXPAR_TEST_NO_FORK)
#define EXPAR_TEST_FORK

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

namespace expar_test {

/// Whether f() gives true in a forked child, within 10 s.
template <class F>
bool holds_in_child(F f) {
  pid_t const child = fork();
  if (child == 0) _exit(f() ? 7 : 8);
  int status = 0;
  pid_t ended = 0;
  for (int waited = 0; waited < 1000 && ended == 0; ++waited) {
    ended = waitpid(child, &status, WNOHANG);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (ended == 0) {
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
  }
  return ended == child && WIFEXITED(status) && WEXITSTATUS(status) == 7;
}

/// From here on this process has no memory for the stack of a thread.
inline void allow_no_threads() {
  rlimit const none{1 << 20, 1 << 20};
  setrlimit(RLIMIT_AS, &none);
}

}  // namespace expar_test
#endif

// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace digits {

inline bool stdout_is_terminal() {
#if defined(__unix__) || defined(__APPLE__)
  return isatty(STDOUT_FILENO) != 0;
#else
  return false;
#endif
}

class stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Where the training stands: on a terminal one line that is written over, elsewhere a line now and
/// then.
class progress {
 public:
  explicit progress(int epochs) : epochs_(epochs), live_(stdout_is_terminal()) {}

  void show(int done, double loss, double accuracy) const {
    bool const last = done == epochs_;
    if (!live_ && !last && done % (epochs_ < 10 ? 1 : epochs_ / 10) != 0) return;
    double const seconds = watch_.seconds(), left = seconds / done * (epochs_ - done);
    std::printf("%sepoch %*d/%d  %s loss %.4f  test accuracy %6.2f%%  %5.1f s", live_ ? "\r" : "",
                epochs_ > 99 ? 3 : 2, done, epochs_, live_ ? bar(done).c_str() : "", loss,
                100 * accuracy, seconds);
    if (live_) std::printf(last ? "             " : ", %.1f s left ", left);
    if (!live_ || last) std::printf("\n");
    std::fflush(stdout);
  }

 private:
  std::string bar(int done) const {
    constexpr int length = 24;
    std::string text;
    for (int i = 0; i < length; ++i) text += i < done * length / epochs_ ? "━" : "╌";
    return text;
  }

  int epochs_;
  bool live_;
  stopwatch watch_;
};

}  // namespace digits

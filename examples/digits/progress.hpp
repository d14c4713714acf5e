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
  explicit progress(int epochs, bool live = stdout_is_terminal()) : epochs_(epochs), live_(live) {}

  void show(int done, double loss, double accuracy) const {
    bool const last = done == epochs_;
    if (!live_ && !last && done % (epochs_ < 10 ? 1 : epochs_ / 10) != 0) return;
    std::printf("%s%s%s", live_ ? "\r" : "", line(done, loss, accuracy, watch_.seconds()).c_str(),
                live_ && !last ? "" : "\n");
    std::fflush(stdout);
  }

  /// On a terminal lines have one width, so that one covers the other and none wraps at 80 columns:
  /// the bar takes what the figures leave.
  std::string line(int done, double loss, double accuracy, double seconds) const {
    bool const running = live_ && done != epochs_;
    if (running) seconds *= (epochs_ - done) / static_cast<double>(done);
    char epoch[48], figures[96];
    int const used =
        std::snprintf(epoch, sizeof epoch, "epoch %*d/%d  ", epochs_ > 99 ? 3 : 2, done, epochs_) +
        std::snprintf(figures, sizeof figures, "loss %.4f  test accuracy %6.2f%%  %6.1f s%s", loss,
                      100 * accuracy, seconds,
                      running ? " left"
                      : live_ ? "     "
                              : "");
    return epoch + (live_ ? bar(done, 77 - used) + "  " : "") + figures;
  }

 private:
  std::string bar(int done, int length) const {
    std::string text;
    for (int i = 0; i < length; ++i) text += i < done * length / epochs_ ? "━" : "╌";
    return text;
  }

  int epochs_;
  bool live_;
  stopwatch watch_;
};

}  // namespace digits

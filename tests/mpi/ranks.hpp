// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>

#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace expar_test {

// An assertion that failed on one rank alone would leave the others waiting for it. So each test
// lets every rank say something, gathers that, and all ranks assert the same.

inline int world_rank() {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  return rank;
}
inline int world_size() {
  int size = 0;
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  return size;
}

inline std::vector<std::string> gathered(std::string const& mine) {
  constexpr std::size_t room = 512;
  std::vector<char> all(room * static_cast<std::size_t>(world_size()));
  char line[room]{};
  std::strncpy(line, mine.c_str(), room - 1);
  MPI_Allgather(line, room, MPI_CHAR, all.data(), room, MPI_CHAR, MPI_COMM_WORLD);
  std::vector<std::string> said;
  for (std::size_t at = 0; at < all.size(); at += room) said.emplace_back(&all[at]);
  return said;
}

/// What f returns or throws, of every rank.
template <class F>
std::vector<std::string> everyone(F f) {
  std::string mine;
  try {
    mine = f();
  } catch (std::exception const& e) {
    mine = std::string("throws: ") + e.what();
  }
  return gathered(mine);
}

inline std::vector<std::string> all_say(std::string const& sentence) {
  return std::vector<std::string>(static_cast<std::size_t>(world_size()), sentence);
}

/// MPI_COMM_WORLD split, and freed again.
class part {
 public:
  part(int color, int key) { MPI_Comm_split(MPI_COMM_WORLD, color, key, &comm_); }
  part(part const&) = delete;
  ~part() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  MPI_Comm get() const { return comm_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

inline std::string wrong_bytes(long n) {
  return std::to_string(n) + " wrong bytes";
}

}  // namespace expar_test

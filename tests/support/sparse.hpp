// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(__unix__)
#include <sys/mman.h>
#endif

#include <expar/tensor.hpp>

namespace expar_test {

/// Address space of which only the pages that are touched take memory; null where there is no such
/// thing.
class sparse_memory {
 public:
  explicit sparse_memory(expar::index_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
#if defined(__unix__)
    void* const p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = p == MAP_FAILED ? nullptr : p;
#endif
  }
  ~sparse_memory() {
#if defined(__unix__)
    if (data_) munmap(data_, bytes_);
#endif
  }
  sparse_memory(sparse_memory const&) = delete;
  sparse_memory& operator=(sparse_memory const&) = delete;
  void* data() const {
    return data_;
  }

 private:
  std::size_t bytes_;
  void* data_ = nullptr;
};

}  // namespace expar_test

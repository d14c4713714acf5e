# SPDX-License-Identifier: Apache-2.0
# Preprocesses HEADER, by default expar.hpp, and looks at what it includes. LANGUAGE cu: as CUDA,
# where the compiler includes its runtime by itself.

if(NOT DEFINED LANGUAGE)
  set(LANGUAGE c++)
endif()
if(NOT DEFINED HEADER)
  set(HEADER expar.hpp)
endif()
execute_process(COMMAND "${COMPILER}" -std=c++20 "-I${INCLUDE}" -E -x ${LANGUAGE}
    "${INCLUDE}/expar/${HEADER}"
  OUTPUT_VARIABLE text ERROR_VARIABLE errors RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${HEADER} does not pass the preprocessor:\n${errors}")
endif()

# Every host header, so that the umbrella cannot fall behind; but the laws, which are for tests, and
# what serves ranks that are far from others, or overlaps what they do.
if(HEADER STREQUAL "expar.hpp")
  file(GLOB_RECURSE headers RELATIVE "${INCLUDE}" "${INCLUDE}/expar/*.hpp")
  list(FILTER headers EXCLUDE REGEX "^expar/(laws|overlap\\.|exchange/(chain|hops|hop_tables|lane|ticket|topology|wire)\\.|comm/(thread_ticket|detail/thread_board)\\.|router/research/|comm/(detail/)?(mpi|nccl)[a-z_]*\\.|interop/|gpu/)")
  foreach(header IN LISTS headers)
    string(FIND "${text}" "${header}\"" place)
    if(place EQUAL -1)
      message(SEND_ERROR "expar.hpp does not include ${header}")
    endif()
  endforeach()
endif()

set(foreigners cuda_fp16 cuda_bf16 cub/ thrust/ cooperative_groups expar/gpu/ mpi.h nccl.h Eigen torch dlpack)
if(LANGUAGE STREQUAL "c++")
  list(APPEND foreigners cuda_runtime)
endif()
foreach(foreign IN LISTS foreigners)
  string(REGEX MATCH "# [0-9]+ \"[^\"]*/${foreign}[^\"]*\"" place "${text}")
  if(place)
    message(SEND_ERROR "${HEADER} includes a header of others: ${place}")
  endif()
endforeach()

# Lines after the preprocessor stand for compile time, and are the same on every machine.
if(NOT DEFINED BUDGET)
  return()
endif()
string(REGEX MATCHALL "\n" lines "${text}")
list(LENGTH lines lines)
message(STATUS "${HEADER} is ${lines} lines after the preprocessor; the budget is ${BUDGET}")
if(lines GREATER BUDGET)
  message(SEND_ERROR "${HEADER} has outgrown its budget: include less, or argue for a larger one")
endif()

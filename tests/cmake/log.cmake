# SPDX-License-Identifier: Apache-2.0
# Runs the command behind `--` and keeps what it says in LOG; shows it if the command fails.

set(command "")
set(behind FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(behind)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(behind TRUE)
  endif()
endforeach()
execute_process(COMMAND ${command}
  OUTPUT_FILE "${LOG}" ERROR_FILE "${LOG}" RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  file(READ "${LOG}" said)
  message("${said}")
  message(FATAL_ERROR "this failed: ${command}")
endif()

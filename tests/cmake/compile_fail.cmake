# SPDX-License-Identifier: Apache-2.0
# Compiles SOURCE twice: as it is, which succeeds, and with EXPAR_MISTAKE, which fails with the
# sentence that its first line states: "// error: <sentence>". A .cu is compiled to PTX, to OUTPUT.

file(STRINGS "${SOURCE}" first_line LIMIT_COUNT 1)
if(NOT first_line MATCHES "^// error: (.+)$")
  message(FATAL_ERROR "${SOURCE}: the first line is not '// error: <sentence>'")
endif()
string(REPLACE "\\;" ";" sentence "${CMAKE_MATCH_1}")
set(compile "${COMPILER}" -std=c++20 "-I${INCLUDE}")
if(SOURCE MATCHES "\\.cu$")
  list(APPEND compile -arch=sm_80 -ptx -o "${OUTPUT}")
else()
  list(APPEND compile -fsyntax-only -fmessage-length=0)
endif()

execute_process(COMMAND ${compile} "${SOURCE}" RESULT_VARIABLE result ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message("${output}")
  message(FATAL_ERROR "without the mistake it must compile")
endif()
execute_process(COMMAND ${compile} -DEXPAR_MISTAKE "${SOURCE}"
  RESULT_VARIABLE result ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "with the mistake it must not compile")
endif()
# The sentence is the first error, so that nobody searches for it.
string(REGEX MATCH "error: [^\n]*" first "${output}")
string(FIND "${first}" "${sentence}" place)
if(place EQUAL -1)
  message("${output}")
  message(FATAL_ERROR "the compiler does not say first: ${sentence}")
endif()

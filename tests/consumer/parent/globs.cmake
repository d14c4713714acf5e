# SPDX-License-Identifier: Apache-2.0
# A parent does not look for new headers of expar in each of its builds.
if(EXISTS CMakeFiles/VerifyGlobs.cmake)
  message(FATAL_ERROR "every build of the parent lists the headers of expar again")
endif()

// How exceptions become codes: every extern "C" function runs its body through `guarded` and returns 0, or a code whose
// text waits in a thread-local for the caller:
//   2 no memory left, 3 an error of the accelerator (with its own number), 4 another error of libtorch,
//   5 another std::exception, 6 anything else.
#pragma once

#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace lockstep {
inline thread_local std::string last_error;
inline thread_local int last_accelerator_code = 0;

template <typename F>
int guarded(F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::OutOfMemoryError& e) {
    last_error = e.what_without_backtrace();
    return 2;
  } catch (const c10::AcceleratorError& e) {
    last_error = e.what_without_backtrace();
    last_accelerator_code = e.get_error_code();
    return 3;
  } catch (const c10::Error& e) {
    last_error = e.what_without_backtrace();
    return 4;
  } catch (const std::exception& e) {
    last_error = e.what();
    return 5;
  } catch (...) {
    last_error = "an exception that is not a std::exception";
    return 6;
  }
}
}  // namespace lockstep

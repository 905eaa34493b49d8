#!/usr/bin/perl
# Counts visits and shows how many there were: as a picture, or beneath /text as
# a number. ?page=NAME counts apart. The count of a page is 20 digits in
# SERAI_DATA/NAME, which are overwritten in one write.
use v5.36;
use Fcntl qw(:flock O_RDWR O_CREAT SEEK_SET);
use File::Path ();
use constant PAGES => 1000;

main();

sub main () {
    my ($page) = ($ENV{QUERY_STRING} // '') =~ /\A(?:page=([A-Za-z0-9_-]{1,64}))?\z/ ? $1 // 'all' : undef;
    return text('400 Bad Request', 'write ?page=NAME, a name of letters, digits, - and _') if !defined $page;
    my $count = visit($page, $ENV{REQUEST_METHOD} eq 'GET');
    return text('503 Service Unavailable', 'no further page is counted here') if !defined $count;
    $count += number('start', 0, 10**15);
    return text('200 OK', $count) if ($ENV{PATH_INFO} // '') eq '/text';
    return text('404 Not Found', 'there is only /text') if length($ENV{PATH_INFO} // '') > 1;
    picture(sprintf('%0*d', number('digits', 1, 20), $count));
}

sub number ($name, $least, $most) {
    my $n = $ENV{ 'SERAI_SETTING_' . uc $name } // '';
    $n = $least if $n !~ /\A[0-9]{1,15}\z/ || $n < $least;
    return $n > $most ? $most : $n;
}

# visit counts one more and returns how many there are, or nothing where there
# are too many pages.
sub visit ($page, $counts) {
    my $dir = $ENV{SERAI_DATA};
    my $path = "$dir/$page";
    if (!-e $path) {
        File::Path::make_path($dir, { mode => 0700 });
        opendir my $d, $dir or die "open $dir: $!\n";
        return if (() = readdir $d) > PAGES;
    }
    sysopen my $file, $path, O_RDWR | O_CREAT, 0600 or die "open $path: $!\n";
    flock $file, LOCK_EX or die "lock $path: $!\n";
    sysread $file, my $digits, 20;
    my $count = ($digits // '') =~ /\A([0-9]{20})\z/ ? $1 + 0 : 0;
    return $count if !$counts;
    sysseek $file, 0, SEEK_SET;
    syswrite($file, sprintf('%020d', ++$count)) == 20 or die "write $path: $!\n";
    return $count;
}

sub text ($status, $text) {
    print "Status: $status\nContent-Type: text/plain; charset=utf-8\nCache-Control: no-store\n\n$text\n";
}

sub picture ($digits) {
    my $label = ($ENV{SERAI_SETTING_LABEL} // '') =~ s{([&<>"'])}{'&#' . ord($1) . ';'}ger;
    my ($width, $n) = (12 * length($digits) + 8, $digits + 0);
    print "Content-Type: image/svg+xml; charset=utf-8\nCache-Control: no-store\nX-Content-Type-Options: nosniff\n\n", <<"END";
<svg xmlns="http://www.w3.org/2000/svg" width="$width" height="24" role="img" aria-label="$n $label"><title>$n $label</title><rect width="$width" height="24" rx="3" fill="#222"/><text x="50%" y="17" text-anchor="middle" font-family="monospace" font-size="18" textLength="@{[ $width - 8 ]}" fill="#fff">$digits</text></svg>
END
}
